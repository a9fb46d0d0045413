"""However events come, however writes fail, the end is the same; and every moment between is valid."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.compile import maglev, shares
from ebpfnet.compile.endpoints import Place, compile_slice
from ebpfnet.compile.services import compile_service
from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.model.facts import Change, Delete, EndpointSlice, Service, Synced, Upsert
from ebpfnet.reconcile.diff import records
from ebpfnet.reconcile.frontends import sets_of
from ebpfnet.reconcile.sets import set_key
from tests.cluster import TCP, Clock, memory_tables, piece, service, settle, writes
from tests.unit.reconcile.events import HOST, NAMES, WIRES, Reconciler, events, run


@pytest.fixture(autouse=True, scope="module")
def _small_tables_of_shares():
    """What is looked at after every write should be little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maglev, "SIZES", (13, 29))
        patch.setattr(shares, "WORTH", 1)
        yield


def final(changes: Sequence[Change]) -> list[Upsert]:
    """The last word on every object."""
    last: dict[object, Change] = {}
    for change in changes:
        ref = change.fact.ref if isinstance(change, Upsert) else change.ref  # type: ignore[union-attr]
        last.pop(ref, None)
        last[ref] = change
    return [change for change in last.values() if isinstance(change, Upsert)]


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=25), st.randoms(use_true_random=False), st.integers(0, 25))
def test_any_path_ends_like_from_scratch(changes, order: random.Random, cut: int):
    scratch = run(final(changes), wires=WIRES)

    step_by_step = memory_tables()
    reconciler = Reconciler(step_by_step, "node-a")
    reconciler.set_wires(WIRES)
    reconciler.apply([*changes[:cut], Synced()])
    for change in changes[cut:]:
        reconciler.apply([change, change])
    assert dump.summary(step_by_step) == scratch

    shuffled = final(changes)
    order.shuffle(shuffled)
    restarted = Reconciler(step_by_step, "node-a")
    restarted.set_wires(WIRES)
    before = writes(step_by_step)
    restarted.apply([*shuffled, Synced()])
    assert dump.summary(step_by_step) == scratch
    assert writes(step_by_step) == before


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=20), st.integers(0, 1000))
def test_failing_writes_change_nothing_in_the_end(changes, seed: int):
    tables = memory_tables(lambda table: FaultyTable(table, probability=0.3, seed=seed, limit=40))
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([Synced()])
    for change in changes:
        reconciler.apply([change])
    settle(reconciler, clock)
    assert dump.summary(tables) == run(final(changes), wires=WIRES)


def fits(change: Upsert, services: int) -> bool:
    """Whether a service's frontends and marks fit beside the node's, and its sets need no table of shares."""
    if not isinstance(change.fact, Service) or change.fact.consistent:
        return False
    asked = compile_service(change.fact, HOST)
    return len(asked.frontends) + len(asked.cluster_ips) + 1 <= services


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=25), st.integers(1, 14), st.integers(3, 6), st.integers(1, 2))
def test_small_tables_hold_what_fits_and_the_rest_follows_when_there_is_room(changes, slots, services, pods):
    tables = memory_tables(slots=slots, services=services, pods=pods)
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([Synced()])
    for change in changes:
        reconciler.apply([change])
    wanted, here = run(final(changes), wires=WIRES), dump.summary(tables)
    if here != wanted:
        assert [problem for problem in reconciler.problems if "table" in problem.reason]
    keep = next((each for each in final(changes)[::-1] if fits(each, services)), None)
    fitting = [Upsert(piece("a", "x", ["10.0.0.1"])), *([keep] if keep else [])]
    last = {change.fact.ref for change in fitting}
    reconciler.apply([Delete(change.fact.ref) for change in final(changes) if change.fact.ref not in last])
    reconciler.apply(fitting)
    settle(reconciler, clock)
    assert dump.summary(tables) == run(fitting, wires=WIRES)


GROUPS = {
    abi.identify(f"default/{name}:{port}/6#local"): abi.identify(f"default/{name}:{port}/6")
    for name in NAMES
    for port in ("", "http", "x")
}


class Checked(MemoryTable):
    """Looks at the whole after every single write."""

    check = staticmethod(lambda: None)

    def put(self, key: bytes, value: bytes) -> None:
        super().put(key, value)
        self.check()

    def delete(self, key: bytes) -> None:
        super().delete(key)
        self.check()


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=20), st.booleans())
def test_after_every_single_write_a_frontend_leads_to_backends_that_were_right(changes, once: bool):
    """Killed between any two writes, the datapath still serves: invariant 2."""
    tables = memory_tables(lambda table: Checked(table.spec))
    ever: dict[int, set[bytes]] = {}
    for change in changes:
        if isinstance(change, Upsert) and isinstance(change.fact, EndpointSlice):
            for group, made in compile_slice(change.fact, Place("node-a")).items():
                ever.setdefault(group, set()).update(records(made.listed))

    def check() -> None:
        for *_, value in tables["services"].items():
            for set_id in sets_of(value):
                assert in_slots(tables, set_id) <= ever.get(GROUPS.get(set_id, set_id), set())

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Synced()])
    if once:
        reconciler.apply(changes)
    else:
        for change in changes:
            reconciler.apply([change])


SWAPS = {
    "ports": (
        [service("web", "10.96.0.1", ports=[("a", TCP, 80), ("b", TCP, 81)])],
        [service("web", "10.96.0.1", ports=[("a", TCP, 81), ("b", TCP, 80)])],
    ),
    "ports, in a ring": (
        [service("web", "10.96.0.1", ports=[("a", TCP, 80), ("b", TCP, 81), ("c", TCP, 82)])],
        [service("web", "10.96.0.1", ports=[("a", TCP, 81), ("b", TCP, 82), ("c", TCP, 80)])],
    ),
    "ports, one after the other": (
        [service("web", "10.96.0.1", ports=[("a", TCP, 80), ("b", TCP, 81)])],
        [service("web", "10.96.0.1", ports=[("a", TCP, 81), ("b", TCP, 82)])],
    ),
    "addresses": (
        [service("a", "10.96.0.1"), service("b", "10.96.0.2")],
        [service("a", "10.96.0.2"), service("b", "10.96.0.1")],
    ),
    "a name": ([service("a", "10.96.0.1")], [service("b", "10.96.0.1")]),
}


def swaps(before, after):
    gone = {fact.ref for fact in before} - {fact.ref for fact in after}
    return [Upsert(fact) for fact in before], [*map(Upsert, after), *map(Delete, gone)]


def assert_steady(before: Sequence[Change], after: Sequence[Change]) -> None:
    """At every moment on the way from one state to the other, every frontend of both is there."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([*before, Synced()])
    scratch = memory_tables()
    run([*final([*before, *after])], scratch)
    stay = {key for key, _ in tables["services"].items()} & {key for key, _ in scratch["services"].items()}

    def check() -> None:
        assert stay <= {key for key, _ in tables["services"].items()}

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    reconciler.apply(after)
    assert dump.summary(tables) == dump.summary(scratch)


@pytest.mark.parametrize(("before", "after"), SWAPS.values(), ids=SWAPS)
def test_what_swaps_frontends_never_leaves_one_without_a_set(before, after):
    assert_steady(*swaps(before, after))


@settings(max_examples=200, deadline=None)
@given(st.lists(events, max_size=15), st.lists(events, max_size=8))
def test_at_every_moment_what_stays_is_there(before, after):
    assert_steady(before, after)


def with_members(tables) -> list[int]:
    """The sets that frontends lead clients to which stay with their backends."""
    values = [value for _, value in tables["services"].items()]
    return [set_id for value in values if abi.Service.unpack(value).affinity_s for set_id in sets_of(value)]


@settings(max_examples=200, deadline=None)
@given(st.lists(events, max_size=15), st.lists(events, max_size=8))
def test_at_every_moment_backends_that_stay_are_members(before, after):
    """Also while affinity is switched on and off, and while a table of shares takes the place of another."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([*before, Synced()])
    there: dict[int, set[bytes]] = {}

    def check() -> None:
        for set_id in with_members(tables):
            for backend in in_slots(tables, set_id) & there.get(set_id, set()):
                assert tables["members"].get(set_key(set_id) + backend + bytes(4))

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    for index, change in enumerate(after):
        scratch = memory_tables()
        run(final([*before, *after[: index + 1]]), scratch)
        found = [int.from_bytes(key, "little") for key, _ in scratch["sets"].items()]
        there = {set_id: in_slots(scratch, set_id) for set_id in found}
        reconciler.apply([change])
        check()


@settings(max_examples=150, deadline=None)
@given(st.lists(events, max_size=15), st.lists(events, max_size=6), st.integers(0, 40))
def test_killed_at_any_write_the_next_agent_ends_right(before, after, survives: int):
    class Killed(Exception):
        pass

    class Fuse(MemoryTable):
        left = -1

        def _burn(self) -> None:
            if Fuse.left == 0:
                raise Killed
            Fuse.left -= 1

        def put(self, key: bytes, value: bytes) -> None:
            self._burn()
            super().put(key, value)

        def delete(self, key: bytes) -> None:
            self._burn()
            super().delete(key)

    Fuse.left = -1
    tables = memory_tables(lambda table: Fuse(table.spec))
    first = Reconciler(tables, "node-a")
    first.set_wires(WIRES)
    first.apply([*before, Synced()])
    Fuse.left = survives
    with contextlib.suppress(Killed):
        first.apply(after)
    Fuse.left = -1
    second = Reconciler(tables, "node-a")
    second.set_wires(WIRES)
    second.apply([*final([*before, *after]), Synced()])
    assert dump.summary(tables) == run(final([*before, *after]), wires=WIRES)


def entries(tables) -> dict[str, dict[bytes, bytes]]:
    return {name: dict(table.items()) for name, table in tables.items()}


def in_slots(tables, set_id: int) -> set[bytes]:
    """The backends of a set; all of its slots are there."""
    found = abi.Set.unpack(tables["sets"].get(set_key(set_id)))
    slots = [abi.Slot(set_id, found.generation, index).pack() for index in range(found.count)]
    return {tables["slots"].get(slot) for slot in slots}


def backends(tables, frontend: bytes) -> set[bytes]:
    """Where a frontend leads."""
    return {each for set_id in sets_of(tables["services"].get(frontend)) for each in in_slots(tables, set_id)}


@settings(max_examples=200, deadline=None)
@given(st.lists(events, max_size=25), st.sets(st.integers(0, 25)), st.lists(events, max_size=6), st.booleans())
def test_a_restart_that_knows_a_part_removes_nothing_until_it_knows_all(changes, hidden, more, failing: bool):
    tables = memory_tables()
    run(final(changes), tables, wires=WIRES)
    before = memory_tables()
    run(final(changes), before, wires=WIRES)
    part = [change for index, change in enumerate(final(changes)) if index not in hidden]
    rest = [change for index, change in enumerate(final(changes)) if index in hidden]
    later = tables if not failing else {n: FaultyTable(t, 0.2, seed=1, limit=20) for n, t in tables.items()}
    reconciler = Reconciler(later, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([*part, Synced(complete=False)])
    if not failing and not rest:
        assert entries(tables) == entries(before)
    settle(reconciler, clock)
    # A service that is hidden or pod may have had an address that another asks for: it is that one's for now.
    if not any(isinstance(change.fact, Service) for change in rest):
        for frontend in dict(before["services"].items()):
            assert backends(before, frontend) - backends(tables, frontend) <= known(part)
    else:
        assert tables["services"].entries.keys() >= before["services"].entries.keys()  # type: ignore[attr-defined]
    assert tables["pods"].entries.keys() >= before["pods"].entries.keys()  # type: ignore[attr-defined]
    for change in more:
        reconciler.apply([change])
    settle(reconciler, clock)
    reconciler.apply([*[change for change in rest if change.fact.ref not in {ref_of(each) for each in more}], Synced()])
    settle(reconciler, clock)
    assert dump.summary(tables) == run(final([*part, *more, *rest_of(rest, more)]), wires=WIRES)
    assert tables["slots"].entries.keys() == expected_slots(tables)  # type: ignore[attr-defined]


def ref_of(change: Change) -> object:
    return change.fact.ref if isinstance(change, Upsert) else change.ref  # type: ignore[union-attr]


def rest_of(rest, more):
    later = {ref_of(each) for each in more}
    return [change for change in rest if change.fact.ref not in later]


def known(changes: Sequence[Upsert]) -> set[bytes]:
    """The backends that slices know: they may be judged by what else is known, or not."""
    slices = [change.fact for change in changes if isinstance(change.fact, EndpointSlice)]
    made = [made for each in slices for made in compile_slice(each, Place("node-a")).values()]
    return {record for each in made for record in records(each.listed)}


def expected_slots(tables) -> set[bytes]:
    found = [(int.from_bytes(key, "little"), abi.Set.unpack(value)) for key, value in tables["sets"].items()]
    return {abi.Slot(key, each.generation, index).pack() for key, each in found for index in range(each.count)}
