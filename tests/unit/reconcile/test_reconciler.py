"""The tables end as the cluster says, whatever the way there."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.compile.services import compile_slice
from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.model.facts import Accepted, Change, Delete, EndpointSlice, Problem, Refused, Synced, Upsert
from ebpfnet.reconcile.diff import records
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import SCTP, TCP, memory_tables, piece, pod, service, wire

WEB = service("web", "10.96.0.1")


class Clock:
    """A clock that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(changes: Sequence[Change], tables=None, wires=None) -> list[str]:
    tables = tables or memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([*changes, Synced()])
    reconciler.set_wires(wires or {})
    return dump.summary(tables)


def settle(reconciler: Reconciler, clock: Clock) -> None:
    for _ in range(500):
        due = reconciler.next_retry
        if due is None:
            return
        clock.now = max(clock.now, due)
        reconciler.retry()
    pytest.fail("never settled")


def writes(tables) -> int:
    return sum(table.writes for table in tables.values())


def test_a_service_leads_to_its_ready_endpoints():
    lines = run([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"], not_ready=["10.0.0.3"]))])
    assert lines == [
        "BACKEND default/web:http 10.96.0.1:80/TCP 10.0.0.1:8080",
        "BACKEND default/web:http 10.96.0.1:80/TCP 10.0.0.2:8080",
        "SERVICE default/web:http 10.96.0.1:80/TCP backends=2",
    ]


def test_a_slice_may_come_before_its_service():
    changes = [Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1"]))]
    assert run(changes) == run(changes[::-1])


def test_a_service_without_endpoints_refuses():
    assert run([Upsert(WEB)]) == ["SERVICE default/web:http 10.96.0.1:80/TCP backends=0"]


def test_families_are_two_sets():
    dual = service("web", "10.96.0.1", "fd00:96::1")
    lines = run([Upsert(dual), Upsert(piece("web", "a", ["10.0.0.1"])), Upsert(piece("web", "b", ["fd00::1"]))])
    assert "BACKEND default/web:http [fd00:96::1]:80/TCP [fd00::1]:8080" in lines
    assert "SERVICE default/web:http 10.96.0.1:80/TCP backends=1" in lines


def test_an_endpoint_in_two_slices_counts_once_and_stays_until_both_lost_it():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    both = [Upsert(piece("web", "a", ["10.0.0.1"])), Upsert(piece("web", "b", ["10.0.0.1", "10.0.0.2"]))]
    reconciler.apply([Upsert(WEB), *both, Synced()])
    assert "backends=2" in dump.summary(tables)[-1]
    reconciler.apply([Delete(piece("web", "a", []).ref)])
    assert "backends=2" in dump.summary(tables)[-1]
    reconciler.apply([Upsert(piece("web", "b", ["10.0.0.2"]))])
    assert "backends=1" in dump.summary(tables)[-1]


def test_nothing_is_written_or_deleted_before_synced():
    tables = memory_tables()
    stray = abi.Frontend(bytes(16), 1, TCP).pack()
    tables["services"].put(stray, abi.Service(1, 1, 0).pack())
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(WEB)])
    assert [key for key, _ in tables["services"].items()] == [stray]
    reconciler.apply([Synced()])
    assert dump.summary(tables) == ["SERVICE default/web:http 10.96.0.1:80/TCP backends=0"]


def test_restart_with_nothing_changed_writes_nothing():
    changes = [
        Upsert(WEB),
        Upsert(piece("web", "a", [f"10.0.0.{n}" for n in range(1, 100)])),
        Upsert(pod("p", "10.0.0.1")),
    ]
    tables = memory_tables()
    first = Reconciler(tables, "node-a")
    first.set_wires({"default/p": wire(5)})
    first.apply([*changes, Synced()])
    before = writes(tables)
    second = Reconciler(tables, "node-a")
    second.set_wires({"default/p": wire(5)})
    second.apply([*reversed(changes), Synced()])
    assert writes(tables) == before


def test_an_endpoint_that_changes_is_one_write():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    addresses = [f"10.0.0.{n}" for n in range(1, 100)]
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", addresses)), Synced()])
    before = writes(tables)
    reconciler.apply([Upsert(piece("web", "a", [*addresses[1:], "10.0.1.1"]))])
    assert writes(tables) == before + 1


def test_one_cluster_ip_belongs_to_the_older_service_and_the_other_is_named():
    old, new = service("b", "10.96.0.1", created="2020-01-01T00:00:00Z"), service("a", "10.96.0.1", created="2021")
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(new), Upsert(old), Synced()])
    assert dump.summary(tables) == ["SERVICE default/b:http 10.96.0.1:80/TCP backends=0"]
    assert [str(p) for p in reconciler.problems] == [
        "Service default/a: spec.clusterIPs[0]: 10.96.0.1 already belongs to Service default/b, which is older"
    ]
    reconciler.apply([Delete(old.ref)])
    assert dump.summary(tables) == ["SERVICE default/a:http 10.96.0.1:80/TCP backends=0"]
    assert reconciler.problems == []


def test_a_cluster_ip_that_moves_leaves_nothing_behind():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1"])), Synced()])
    reconciler.apply([Upsert(service("web", "10.96.0.9"))])
    assert dump.summary(tables) == [
        "BACKEND default/web:http 10.96.0.9:80/TCP 10.0.0.1:8080",
        "SERVICE default/web:http 10.96.0.9:80/TCP backends=1",
    ]


def test_two_services_that_swap_addresses():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(service("a", "10.96.0.1")), Upsert(service("b", "10.96.0.2")), Synced()])
    swapped = [Upsert(service("a", "10.96.0.2")), Upsert(service("b", "10.96.0.1"))]
    reconciler.apply(swapped)
    assert dump.summary(tables) == run(swapped)


def test_sctp_ports_are_named_and_the_others_served():
    mixed = service("web", "10.96.0.1", ports=[("http", TCP, 80), ("s", SCTP, 81)])
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Upsert(mixed), Synced()])
    assert [p.field for p in reconciler.problems] == ["spec.ports[1].protocol"]


def test_what_does_not_fit_is_named_and_the_last_good_version_stays():
    tables = memory_tables(slots=4)
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])), Synced()])
    reconciler.apply([Upsert(service("big", "10.96.0.2")), Upsert(piece("big", "a", ["10.0.1.1", "10.0.1.2"]))])
    assert "SERVICE default/web:http 10.96.0.1:80/TCP backends=3" in dump.summary(tables)
    [problem] = reconciler.problems
    assert (problem.ref.name, problem.field) == ("big", "endpoints")
    assert "slots" in problem.reason
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1"]))])
    settle(reconciler, clock)
    assert "SERVICE default/big:http 10.96.0.2:80/TCP backends=2" in dump.summary(tables)
    assert reconciler.problems == []


def test_a_refused_object_is_told_and_forgotten_when_accepted():
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Refused(Problem(WEB.ref, "spec", "no")), Synced()])
    assert [p.field for p in reconciler.problems] == ["spec"]
    reconciler.apply([Accepted(WEB.ref)])
    assert reconciler.problems == []


def test_pods_of_this_node_with_a_wire_are_in_the_table():
    pods = [
        Upsert(pod("p", "10.0.0.1", "fd00::1")),
        Upsert(pod("far", "10.0.0.2", node="node-b")),
        Upsert(pod("bare", "10.0.0.3")),
    ]
    lines = run(pods, wires={"default/p": wire(7), "default/far": wire(8)})
    assert lines == [
        "POD default/p 10.0.0.1 ifindex=7 mac=02:00:00:00:00:07",
        "POD default/p fd00::1 ifindex=7 mac=02:00:00:00:00:07",
    ]


def test_a_wire_that_goes_is_told_to_the_sweeper():
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Upsert(pod("p", "10.0.0.1")), Synced()])
    reconciler.set_wires({"default/p": wire(7)})
    reconciler.set_wires({"default/p": wire(9)})
    assert reconciler.gone == {7}


def test_two_pods_with_one_address_are_named():
    reconciler = Reconciler(tables := memory_tables(), "node-a")
    reconciler.apply([Upsert(pod("a", "10.0.0.1")), Upsert(pod("b", "10.0.0.1")), Synced()])
    reconciler.set_wires({"default/a": wire(1), "default/b": wire(2)})
    assert dump.summary(tables) == ["POD default/a 10.0.0.1 ifindex=1 mac=02:00:00:00:00:01"]
    assert [str(p) for p in reconciler.problems] == [
        "Pod default/b: status.podIPs: 10.0.0.1 already belongs to Pod default/a"
    ]


# However events come, however writes fail, the end is the same

NAMES = ("a", "b", "c")
addresses = st.lists(st.integers(1, 12).map(lambda n: f"10.0.0.{n}"), unique=True, max_size=12)
events = st.one_of(
    st.builds(lambda n, ip: Upsert(service(n, f"10.96.0.{ip}")), st.sampled_from(NAMES), st.integers(1, 4)),
    st.builds(lambda n: Delete(service(n).ref), st.sampled_from(NAMES)),
    st.builds(lambda n, s, ready: Upsert(piece(n, s, ready)), st.sampled_from(NAMES), st.sampled_from("xy"), addresses),
    st.builds(lambda n, s: Delete(piece(n, s, []).ref), st.sampled_from(NAMES), st.sampled_from("xy")),
    st.builds(lambda n, ip: Upsert(pod(n, f"10.0.9.{ip}")), st.sampled_from(NAMES), st.integers(1, 4)),
    st.builds(lambda n: Delete(pod(n).ref), st.sampled_from(NAMES)),
)
WIRES = {f"default/{name}": wire(index + 1) for index, name in enumerate(NAMES)}


def final(changes: Sequence[Change]) -> list[Change]:
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


class Checked(MemoryTable):
    """Looks at the whole after every single write."""

    check = staticmethod(lambda: None)

    def put(self, key: bytes, value: bytes) -> None:
        super().put(key, value)
        self.check()

    def delete(self, key: bytes) -> None:
        super().delete(key)
        self.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(events, max_size=20), st.booleans())
def test_after_every_single_write_a_frontend_leads_to_backends_that_were_right(changes, once: bool):
    """Killed between any two writes, the datapath still serves: invariant 2."""
    tables = memory_tables(lambda table: Checked(table.spec))
    ever: dict[bytes, set[bytes]] = {}
    for change in changes:
        if isinstance(change, Upsert) and isinstance(change.fact, EndpointSlice):
            for set_id, packed in compile_slice(change.fact).items():
                ever.setdefault(set_id.to_bytes(8, "little"), set()).update(records(packed))

    def check() -> None:
        for item in tables["services"].items():
            entry = abi.Service.unpack(item[1])
            for index in range(entry.count):
                backend = tables["slots"].get(abi.Slot(entry.id, entry.generation, index).pack())
                assert backend in ever[entry.id.to_bytes(8, "little")]

    for table in tables.values():
        table.check = check  # type: ignore[attr-defined]
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Synced()])
    if once:
        reconciler.apply(changes)
    else:
        for change in changes:
            reconciler.apply([change])


@settings(max_examples=100, deadline=None)
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
