"""However events come, however writes fail, the end is the same; and every verdict between is one of two states'."""

from __future__ import annotations

import random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.model.facts import Change, Synced
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle, writes
from tests.unit.reconcile.policy.world import PROBES, WIRES, scratch, series, shape, verdicts
from tests.unit.reconcile.test_paths import Checked, final

PHASES = (Phase.explicit, Phase.generate)
"""Without making a failing series smaller: each is a few seconds of work. The same series each time, so that a change
is known by what it breaks; take ``derandomize`` away to look for others.
"""


def begin(tables, clock=None) -> Reconciler:
    reconciler = Reconciler(tables, "node-a", clock or Clock())
    reconciler.set_wires(WIRES)
    return reconciler


@settings(max_examples=66, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.randoms(use_true_random=False), st.integers(0, 20))
def test_any_path_ends_like_from_scratch(changes, order: random.Random, cut: int):
    want = scratch(final(changes))
    tables = memory_tables()
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([*changes[:cut], Synced()])
    for change in changes[cut:]:
        reconciler.apply([change, change])
        if order.random() < 0.3:
            settle(reconciler, clock)
    assert verdicts(tables) == verdicts(want)
    settle(reconciler, clock)
    assert shape(tables) == shape(want)

    shuffled = final(changes)
    order.shuffle(shuffled)
    restarted = begin(tables, clock)
    before = writes(tables)
    restarted.apply([*shuffled, Synced()])
    settle(restarted, clock)
    assert writes(tables) == before
    assert shape(tables) == shape(want)


@settings(max_examples=50, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.integers(0, 1000))
def test_failing_writes_change_nothing_in_the_end(changes, seed: int):
    tables = memory_tables(lambda table: FaultyTable(table, probability=0.3, seed=seed, limit=40))
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([Synced()])
    for change in changes:
        reconciler.apply([change])
    settle(reconciler, clock)
    assert shape(tables) == shape(scratch(final(changes)))


@settings(max_examples=40, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.booleans())
def test_every_verdict_is_that_of_before_or_after(changes, tidy: bool):
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([Synced()])
    seen: list[Change] = []
    for change in changes:
        before = verdicts(tables)
        seen.append(change)
        after = verdicts(scratch(final(seen)))

        def check(before=before, after=after) -> None:
            for probe, now in enumerate(verdicts(tables)):
                assert now in {before[probe], after[probe]}

        for table in tables.values():
            table.check = check  # type: ignore[attr-defined]
        reconciler.apply([change])
        assert verdicts(tables) == after
        before[:] = after
        if tidy:
            settle(reconciler, clock)
        for table in tables.values():
            table.check = lambda: None  # type: ignore[attr-defined]


class Killed(Exception):
    """There is no more of this agent."""


@settings(max_examples=33, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.integers(0, 200))
def test_killed_at_any_write_the_next_one_finishes(changes, left: int):
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())

    def check() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    try:
        reconciler.apply([Synced()])
        for change in changes:
            reconciler.apply([change])
        settle(reconciler, clock)
    except Killed:
        pass
    restarted = begin(tables, clock)
    restarted.apply([*final(changes), Synced()])
    settle(restarted, clock)
    assert shape(tables) == shape(scratch(final(changes)))
    assert all(not value[0] & 1 for *_, value in tables["generations"].items())


@settings(max_examples=33, deadline=None, phases=PHASES, derandomize=True)
@given(series)
def test_flows_are_judged_again_where_a_verdict_is_another_one(changes):
    tables = memory_tables()
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([Synced()])
    for change in changes:
        pods = dict(tables["pods"].items())
        old, generations = verdicts(tables), dict(tables["generations"].items())
        reconciler.apply([change])
        now, later = verdicts(tables), dict(tables["generations"].items())
        changed = set()
        for probe, before, after in zip(PROBES, old, now, strict=True):
            mine = probe[0] if probe[4] else probe[1]
            if before[:3] != after[:3] and mine in pods and mine in dict(tables["pods"].items()):
                changed.add(int.from_bytes(pods[mine][:4], "little").to_bytes(4, "little"))
        for slot in changed:
            assert generations.get(slot, bytes(4)) != later.get(slot, bytes(4))
        settle(reconciler, clock)
