"""However events come, however writes fail, the end is the same; and every verdict between is one of two states'."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Change, Synced
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle, writes
from tests.unit.reconcile.policy.world import PROBES, WIRES, scratch, series, shape, verdicts
from tests.unit.reconcile.test_paths import Checked, final

PHASES = (Phase.explicit, Phase.generate)
"""Without making a failing series smaller: each is a few seconds of work. The same series each time, so that a change
is known by what it breaks; take ``derandomize`` away to look for others.
"""

CLOSED = (abi.Verdict.DENY, 0, False, 0, 0, True)
"""What a pod meets whose rules are not there yet."""


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
@given(series, st.lists(st.sampled_from([1, 1, 1, 3]), min_size=16, max_size=16), st.booleans())
def test_every_verdict_is_that_of_before_or_after(changes, counts, tidy: bool):
    """After every single write; of changes that come together it may be that of each state between them."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([Synced()])
    seen: list[Change] = []
    left = list(changes)
    while left:
        some = [left.pop(0) for _ in range(min(counts[len(left) % len(counts)], len(left)))]
        states = on_the_way(tables, seen, some)
        at_every_write(tables, states)
        reconciler.apply(some)
        assert verdicts(tables) == states[-1]
        at_every_write(tables, states[-1:])
        if tidy:
            settle(reconciler, clock)


def on_the_way(tables: Mapping[str, Table], seen: list[Change], some: Iterable[Change]) -> list[Sequence[object]]:
    """Return all verdicts as they are, and as they are to be after each of some changes; these are seen then."""
    states: list[Sequence[object]] = [verdicts(tables)]
    for change in some:
        seen.append(change)
        states.append(verdicts(scratch(final(seen))))
    return states


def at_every_write(tables, states) -> None:
    """From now on each verdict must be that of one of these states; a pod that is not yet in the table may get none."""
    there = dict(tables["pods"].items())
    new = {number for number, probe in enumerate(PROBES) if probe[0 if probe[4] else 1] not in there}

    def check() -> None:
        for number, now in enumerate(verdicts(tables)):
            assert now in {each[number] for each in states} or (number in new and now == CLOSED)

    for table in tables.values():
        table.check = check


@settings(max_examples=40, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.integers(8, 24), st.integers(0, 60))
def test_after_a_restart_every_verdict_is_that_of_before_or_after(changes, cut: int, left: int):
    """While there was no agent much may have changed; and the one before may have been killed at any write."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())
    kill_at(tables, left)
    with contextlib.suppress(Killed):
        reconciler.apply([Synced()])
        for change in changes[:cut]:
            reconciler.apply([change])
        settle(reconciler, clock)
    after = verdicts(scratch(final(changes)))
    at_every_write(tables, [verdicts(tables), after])
    restarted = begin(tables, clock)
    restarted.apply([*final(changes), Synced()])
    assert verdicts(tables) == after
    at_every_write(tables, [after])
    settle(restarted, clock)


class Killed(Exception):
    """There is no more of this agent."""


def kill_at(tables, left: int) -> None:
    """Let the agent die at the write of that number; 0: never."""

    def check() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    for table in tables.values():
        table.check = check


@settings(max_examples=33, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.integers(0, 200))
def test_killed_at_any_write_the_next_one_finishes(changes, left: int):
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())

    kill_at(tables, left)
    with contextlib.suppress(Killed):
        reconciler.apply([Synced()])
        for change in changes:
            reconciler.apply([change])
        settle(reconciler, clock)
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


@settings(max_examples=33, deadline=None, phases=PHASES, derandomize=True)
@given(series)
def test_a_pod_gets_another_group_only_while_the_generation_of_all_is_odd(changes):
    """What ``from_pod`` found out about a pod is still true when that generation is even, and as it was before."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = begin(tables, clock := Clock())
    known: dict[bytes, int] = {}

    def is_odd() -> bool:
        generation = tables["generations"].get(abi.GENERATION_OF_ALL.to_bytes(4, "little")) or bytes(4)
        return bool(generation[0] & 1)

    def check() -> None:
        groups = {key: abi.Pod.unpack(value).group for key, value in tables["pods"].items()}
        moved = [key for key in groups.keys() & known.keys() if groups[key] != known[key]]
        assert not moved or is_odd()
        known.clear()
        known.update(groups)

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    reconciler.apply([Synced()])
    for change in changes:
        reconciler.apply([change])
        settle(reconciler, clock)
    assert not is_odd()
