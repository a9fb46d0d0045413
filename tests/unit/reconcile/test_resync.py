"""The way back after failures: in small steps, with changes between them, to the same end."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.model.facts import Synced, Upsert
from tests.cluster import TCP, Clock, memory_tables, piece, pod, service, settle
from tests.unit.reconcile.events import WIRES, Reconciler, events, run
from tests.unit.reconcile.test_paths import expected_slots, final


class Counted(MemoryTable):
    """Counts what is read, one by one."""

    reads = 0

    def get(self, key: bytes) -> bytes | None:
        Counted.reads += 1
        return super().get(key)

    def items(self):
        for item in super().items():
            Counted.reads += 1
            yield item


@settings(max_examples=200, deadline=None)
@given(st.lists(events, max_size=15), st.lists(events, max_size=30), st.integers(0, 1000), st.integers(0, 60))
def test_changes_between_the_steps_end_like_from_scratch(before, between, seed: int, faults: int):
    tables = memory_tables(lambda table: FaultyTable(table, probability=0.3, seed=seed, limit=faults))
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([*before, Synced(complete=False)])
    reconciler.apply([Synced()])
    events_left = list(between)
    for _ in range(100):
        for _ in reconciler.steps():
            if events_left:
                reconciler.apply([events_left.pop(0)])
        if (due := reconciler.next_retry) is None:
            break
        clock.now = max(clock.now, due)
    reconciler.apply(events_left)
    settle(reconciler, clock)
    assert dump.summary(tables) == run(final([*before, *between]), wires=WIRES)
    assert {key for key, _ in tables["slots"].items()} == expected_slots(tables)


def drifted(slots: int = 300) -> tuple[Reconciler, dict[str, MemoryTable], Clock, list[str]]:
    """Return a reconciler that has to look at everything again, and the dump of how it should be."""
    tables: dict[str, MemoryTable] = memory_tables(lambda table: Counted(table.spec))  # type: ignore[assignment]
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    names = [f"s{number}" for number in range(20)]
    reconciler.apply([Upsert(service(name, f"10.96.0.{index}")) for index, name in enumerate(names, 1)])
    reconciler.apply([Upsert(piece(name, "x", [f"10.{i}.{n >> 8}.{n & 255}" for n in range(1, slots)]))
                      for i, name in enumerate(names)])  # fmt: skip
    reconciler.apply([Upsert(pod("a", "10.0.9.1")), Synced(complete=False)])
    reconciler.apply([Synced()])
    return reconciler, tables, clock, dump.summary(tables)


def test_whatever_the_tables_hold_is_put_right():
    reconciler, tables, clock, right = drifted()
    chance = random.Random(1)
    for name, count in (("services", 5), ("sets", 5), ("slots", 100), ("names", 5), ("pods", 1)):
        for key in chance.sample(sorted(tables[name].entries), count):
            del tables[name].entries[key]
        for key in chance.sample(sorted(tables[name].entries), count - 1):
            tables[name].entries[key] = bytes(tables[name].spec.value_size)
    stray = abi.Frontend(bytes(16), 1, TCP).pack()
    tables["services"].put(stray, abi.Service(7, 7).pack())
    tables["sets"].put((7).to_bytes(8, "little"), abi.Set(1, 1).pack())
    tables["members"].put(abi.Member(7, abi.Backend(bytes(16), 1)).pack(), bytes(4))
    tables["ranges"].put(abi.Range(64, 7, bytes(16)).pack(), bytes(4))
    tables["slots"].put(abi.Slot(7, 1, 0).pack(), bytes(20))
    tables["names"].put(bytes(8), bytes(abi.NAME_SIZE))
    settle(reconciler, clock)
    assert dump.summary(tables) == right
    assert tables["slots"].entries.keys() == expected_slots(tables)
    assert reconciler.next_retry is None


def test_no_step_is_long():
    reconciler, _, clock, _ = drifted(slots=3000)
    clock.now = reconciler.next_retry or 0
    Counted.reads, worst, steps = 0, 0, 0
    for _ in reconciler.steps():
        worst, steps, Counted.reads = max(worst, Counted.reads), steps + 1, 0
    assert steps > 20 * 3000 / 512
    assert worst < 1000
