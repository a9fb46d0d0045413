"""The tables end as the cluster says, whatever the way there."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from ebpfnet import abi
from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.model.facts import Accepted, Change, Delete, Problem, Refused, Synced, Upsert
from ebpfnet.reconcile.pods import WIRE
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.reconcile.routes import Fate
from tests.cluster import SCTP, TCP, Clock, memory_tables, piece, pod, run, service, settle, unmarked, wire, writes

WEB = service("web", "10.96.0.1")


def test_a_service_leads_to_its_ready_endpoints():
    lines = run([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"], not_ready=["10.0.0.3"]))])
    assert unmarked(lines) == [
        "BACKEND default/web:http 10.96.0.1:80/TCP 10.0.0.1:8080",
        "BACKEND default/web:http 10.96.0.1:80/TCP 10.0.0.2:8080",
        "SERVICE default/web:http 10.96.0.1:80/TCP backends=2",
    ]


def test_a_slice_may_come_before_its_service():
    changes = [Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1"]))]
    assert run(changes) == run(changes[::-1])


def test_a_service_without_endpoints_refuses():
    assert unmarked(run([Upsert(WEB)])) == ["SERVICE default/web:http 10.96.0.1:80/TCP backends=0"]


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
    assert writes(tables) == 1
    reconciler.apply([Synced()])
    assert unmarked(dump.summary(tables)) == ["SERVICE default/web:http 10.96.0.1:80/TCP backends=0"]


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
    assert unmarked(dump.summary(tables)) == ["SERVICE default/b:http 10.96.0.1:80/TCP backends=0"]
    assert [str(p) for p in reconciler.problems] == [
        "Service default/a: spec.clusterIPs[0]: 10.96.0.1:80/TCP belongs to Service default/b, which is older"
    ]
    reconciler.apply([Delete(old.ref)])
    assert unmarked(dump.summary(tables)) == ["SERVICE default/a:http 10.96.0.1:80/TCP backends=0"]
    assert reconciler.problems == []


@pytest.mark.parametrize(
    ("a", "b", "loser", "reason"),
    [
        ("2021", "2020", "a", "which is older"),
        ("", "2020", "a", "for this one has no creationTimestamp"),
        ("2020", "2020", "b", "which is as old and comes first by name"),
        ("", "", "b", "which comes first by name: neither has a creationTimestamp"),
    ],
)
def test_why_a_cluster_ip_is_another_services_is_said_as_it_is(a: str, b: str, loser: str, reason: str):
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Upsert(service("a", "10.96.0.1", created=a)), Synced()])
    reconciler.apply([Upsert(service("b", "10.96.0.1", created=b))])
    [problem] = reconciler.problems
    assert problem.ref.name == loser
    assert problem.reason.endswith(reason)


def test_problems_are_told_when_they_change_and_not_at_every_event():
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Upsert(service("a", "10.96.0.1")), Upsert(service("b", "10.96.0.1")), Synced()])
    told = reconciler.told
    other = service("other", "10.96.0.9")
    reconciler.apply([Upsert(other), Upsert(service("b", "10.96.0.1")), Delete(other.ref)])
    assert reconciler.told == told
    reconciler.apply([Delete(service("b").ref)])
    assert reconciler.told > told
    assert reconciler.problems == []


def test_a_cluster_ip_that_moves_leaves_nothing_behind():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1"])), Synced()])
    reconciler.apply([Upsert(service("web", "10.96.0.9"))])
    assert unmarked(dump.summary(tables)) == [
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


def test_a_port_without_a_name_is_named_by_its_number():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    feed = Upsert(piece("web", "a", ["10.0.0.1"], ports=[("", TCP, 8080)]))
    reconciler.apply([Upsert(service("web", "10.96.0.1", ports=[("", TCP, 80)])), feed, Synced()])
    reconciler.apply([Upsert(service("web", "10.96.0.1", ports=[("", TCP, 81)]))])
    assert unmarked(dump.summary(tables)) == [
        "BACKEND default/web:81 10.96.0.1:81/TCP 10.0.0.1:8080",
        "SERVICE default/web:81 10.96.0.1:81/TCP backends=1",
    ]


def test_a_name_longer_than_its_table_loses_its_end_for_show_only():
    namespace_and_name = "x" * 2 * abi.NAME_SIZE
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.apply([Upsert(service(namespace_and_name, "10.96.0.1")), Upsert(service("y", "10.96.0.2")), Synced()])
    lines = unmarked(dump.summary(tables))
    assert len(lines) == 2
    assert lines[0].startswith("SERVICE default/xxx")
    assert "x… " in lines[0]


def test_sctp_ports_are_served_like_any():
    mixed = service("web", "10.96.0.1", ports=[("http", TCP, 80), ("s", SCTP, 81)])
    feed = piece("web", "a", ["10.0.0.1"], ports=[("s", SCTP, 8081)])
    assert "BACKEND default/web:s 10.96.0.1:81/SCTP 10.0.0.1:8081" in run([Upsert(mixed), Upsert(feed)])


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


def test_what_does_not_fit_lets_a_failed_write_be_followed_by_one_resync(monkeypatch: pytest.MonkeyPatch):
    """A resync reads everything back: not at every turn for as long as a table is full."""
    clock, syncs = Clock(), list[float]()

    def resync() -> Iterator[None]:
        syncs.append(clock.now)
        return Reconciler._resync(reconciler)

    tables = memory_tables(slots=4)
    tables["slots"] = table = FaultyTable(tables["slots"], 1.0, seed=1, limit=0)
    reconciler = Reconciler(tables, "node-a", clock)
    monkeypatch.setattr(reconciler, "_resync", resync)
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])), Synced()])
    reconciler.apply([Upsert(service("big", "10.96.0.2")), Upsert(piece("big", "a", ["10.0.1.1", "10.0.1.2"]))])
    table.left = 1
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.4"]))])
    for _ in range(200):
        clock.now += 0.5
        reconciler.retry()
    assert len(syncs) == 1
    assert [problem.ref.name for problem in reconciler.problems] == ["big"]


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


def test_the_wires_of_addresses_are_known_to_the_sweeper():
    reconciler = Reconciler(memory_tables(), "node-a")
    assert reconciler.wires is None
    reconciler.apply([Upsert(pod("p", "10.0.0.1")), Synced()])
    assert reconciler.wires == {}
    for ifindex in (7, 9):
        reconciler.set_wires({"default/p": wire(ifindex)})
        assert reconciler.wires == {
            abi.pack_address(ipaddress.ip_address("10.0.0.1")): abi.Pod(wire(ifindex), 0).pack()[WIRE]
        }


def test_the_wires_are_not_known_while_the_table_of_pods_fails():
    clock, tables = Clock(), memory_tables()
    tables["pods"] = table = FaultyTable(tables["pods"], 1.0, seed=1, limit=0)
    reconciler = Reconciler(tables, "node-a", clock)
    reconciler.apply([Upsert(pod("p", "10.0.0.1")), Synced()])
    table.left = 1
    reconciler.set_wires({"default/p": wire(7)})
    assert reconciler.wires is None
    settle(reconciler, clock)
    assert len(reconciler.wires or ()) == 1


def packed(frontend: tuple[str, int, int], backend: tuple[str, int] = ("0.0.0.0", 0)) -> tuple[bytes, bytes]:
    (address, port, protocol), (there, target) = frontend, backend
    key = abi.Frontend(abi.pack_address(ipaddress.ip_address(address)), port, protocol).pack()
    return key, abi.Backend(abi.pack_address(ipaddress.ip_address(there)), target).pack()


def test_flows_are_judged_by_what_the_tables_hold():
    web, closed = ("10.96.0.1", 80, TCP), ("10.96.0.1", 81, TCP)
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    assert reconciler.fate(*packed(web, ("10.0.0.1", 8080))) == Fate.CHOSEN, "nobody knows yet"
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1"])), Synced()])
    assert [reconciler.is_frontend(packed(each)[0]) for each in (web, closed)] == [True, False]
    backends = [("10.0.0.1", 8080), ("10.0.0.1", 8081), ("10.0.0.2", 8080)]
    assert [reconciler.fate(*packed(web, each)) for each in backends] == [Fate.CHOSEN, Fate.GONE, Fate.GONE]
    assert reconciler.fate(*packed(closed, ("10.0.0.1", 8080))) == Fate.NO_SERVICE
    by_socket = abi.Service.unpack(tables["services"].get(packed(web)[0]) or b"").inside.to_bytes(8, "little")
    found = [reconciler.fate(by_socket, packed(web, each)[1]) for each in backends]
    assert found == [Fate.CHOSEN, Fate.GONE, Fate.GONE]
    reconciler.apply([Delete(WEB.ref)])
    assert not reconciler.is_frontend(packed(web)[0])
    assert reconciler.fate(*packed(web, ("10.0.0.1", 8080))) == Fate.NO_SERVICE


def test_a_set_that_could_not_be_written_leads_anywhere():
    clock, tables = Clock(), memory_tables()
    tables["slots"] = faulty = FaultyTable(tables["slots"], 1.0, 0, limit=0)
    reconciler = Reconciler(tables, "node-a", clock)
    reconciler.apply([Upsert(WEB), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"])), Synced()])
    faulty.left = 1000
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.2"]))])
    gone = packed(("10.96.0.1", 80, TCP), ("10.0.0.1", 8080))
    assert reconciler.fate(*gone) == Fate.CHOSEN
    faulty.left = 0
    before = reconciler.turns
    settle(reconciler, clock)
    assert reconciler.fate(*gone) == Fate.GONE
    assert reconciler.turns > before


def test_turns_tell_when_flows_may_be_astray():
    reconciler = Reconciler(memory_tables(), "node-a")

    def turned(*changes: Change) -> bool:
        before = reconciler.turns
        reconciler.apply(changes)
        return reconciler.turns != before

    two = Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"]))
    assert turned(Upsert(WEB), two, Synced())
    assert not turned(two)
    assert not turned(Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]))), "another backend harms nobody"
    assert turned(two)
    assert turned(Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.3"])))
    assert turned(Upsert(service("web", "10.96.0.2")))
    assert turned(Upsert(service("api", "10.96.0.3")))
    assert turned(Delete(WEB.ref))


def test_two_pods_with_one_address_are_named():
    reconciler = Reconciler(tables := memory_tables(), "node-a")
    reconciler.apply([Upsert(pod("a", "10.0.0.1")), Upsert(pod("b", "10.0.0.1")), Synced()])
    reconciler.set_wires({"default/a": wire(1), "default/b": wire(2)})
    assert unmarked(dump.summary(tables)) == ["POD default/a 10.0.0.1 ifindex=1 mac=02:00:00:00:00:01"]
    assert [str(p) for p in reconciler.problems] == [
        "Pod default/b: status.podIPs: 10.0.0.1 already belongs to Pod default/a"
    ]


def test_a_pod_with_the_address_of_a_service_is_named_for_as_long_as_it_is():
    reconciler = Reconciler(memory_tables(), "node-a")
    reconciler.apply([Upsert(pod("a", "10.96.0.1")), Upsert(pod("b", "10.0.0.1")), Synced()])
    reconciler.set_wires({"default/a": wire(1), "default/b": wire(2)})
    assert reconciler.problems == []
    reconciler.apply([Upsert(WEB)])
    assert [str(p) for p in reconciler.problems] == [
        (
            "Pod default/a: status.podIPs[0].ip: 10.96.0.1 is a cluster IP of Service default/web, too, "
            "whose ports lead to its endpoints"
        )
    ]
    reconciler.apply([Upsert(service("web", "10.96.0.2"))])
    assert reconciler.problems == []
    reconciler.apply([Upsert(WEB), Delete(WEB.ref)])
    assert reconciler.problems == []


def test_a_set_whose_backends_do_not_fit_says_all_the_same_how_it_is_chosen_from():
    tables = memory_tables(slots=1)
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    taker = [Upsert(service("a", "10.96.0.2")), Upsert(piece("a", "x", ["10.0.0.1"]))]
    reconciler.apply([*taker, Synced(), Upsert(service("b", "10.96.0.1", consistent=True))])
    reconciler.apply([Upsert(piece("b", "x", ["10.0.0.2"])), Upsert(service("b", "10.96.0.1"))])
    reconciler.apply([Delete(piece("b", "x", []).ref)])
    settle(reconciler, clock)
    assert dump.summary(tables) == run([*taker, Upsert(service("b", "10.96.0.1"))])
