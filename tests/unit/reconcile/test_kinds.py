"""Services of every kind, as they and their node change."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.abi import Mark
from ebpfnet.compile.maglev import consistent
from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.model.facts import Delete, Hint, Synced, Upsert
from ebpfnet.model.host import Host
from ebpfnet.reconcile.diff import records
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.reconcile.routes import Fate
from ebpfnet.reconcile.sets import set_key
from tests.cluster import TCP, Clock, host, memory_tables, node, piece, run, service, settle, writes

HERE = host(addresses=["192.168.0.1"], nodeport_addresses=["192.168.0.1"], sources=["192.168.0.1"])
WEB = service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)])
THREE = piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
SET = abi.identify("default/web:http/6")


def started(*facts, on: Host = HERE, clock: Clock | None = None, **sizes: Any):
    tables = memory_tables(**sizes)
    reconciler = Reconciler(tables, "node-a", clock or Clock())
    reconciler.set_host(on)
    reconciler.apply([*map(Upsert, facts), Synced()])
    return reconciler, tables


def frontend(address: str, port: int, protocol: int = TCP) -> bytes:
    return abi.Frontend(abi.pack_address(ipaddress.ip_address(address)), port, protocol).pack()


def backend(address: str, port: int = 8080) -> bytes:
    return abi.Backend(abi.pack_address(ipaddress.ip_address(address)), port).pack()


def slots(tables, set_id: int = SET) -> list[bytes]:
    found = abi.Set.unpack(tables["sets"].get(set_key(set_id)))
    return [tables["slots"].get(abi.Slot(set_id, found.generation, index).pack()) for index in range(found.count)]


def test_what_the_host_is_follows_it():
    lan = service("lan", "10.96.0.2", load_balancer_ips=["192.0.2.1"], external_ips=["198.51.100.1"])
    facts = [Upsert(fact) for fact in (WEB, THREE, lan)]
    reconciler, tables = started(WEB, THREE, lan)
    for on in (
        host(addresses=["192.168.0.1", "192.0.2.1"], external_ip_cidrs=["198.51.100.0/24"]),
        host(addresses=["192.168.0.9"], nodeport_addresses=["192.168.0.9"], pod_cidrs=["10.0.0.0/8"]),
        host(busy=[(TCP, 30080)], service_cidrs=["10.96.0.0/16"]),
        HERE,
    ):
        told = reconciler.told
        reconciler.set_host(on)
        assert dump.summary(tables) == run(facts, on=on)
        assert reconciler.told > told
    before = writes(tables)
    reconciler.set_host(HERE)
    assert writes(tables) == before


def test_an_address_that_is_two_things_has_both_marks():
    reconciler, tables = started(WEB, on=host(addresses=["10.96.0.1"], nodeport_addresses=["10.96.0.1"]))

    def marks() -> int:
        raw = tables["services"].get(frontend("10.96.0.1", 0, 0))
        return abi.Service.unpack(raw).marks if raw else 0

    assert marks() == Mark.OWN | Mark.NODEPORTS | Mark.CLUSTER_IP
    reconciler.apply([Delete(WEB.ref)])
    assert marks() == Mark.OWN | Mark.NODEPORTS
    reconciler.set_host(host())
    assert marks() == 0


def test_addresses_of_nodes_matter_while_a_service_is_direct():
    direct = service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)], direct=True)
    reconciler, tables = started(WEB, THREE, node("node-a", addresses=["192.168.0.1"]))

    def marked() -> set[str]:
        found = ((abi.Frontend.unpack(key), abi.Service.unpack(value)) for key, value in tables["services"].items())
        marks = {str(abi.unpack_address(key.address)) for key, value in found if value.marks & Mark.NODE}
        assert dump.summary(tables) == run([*map(Upsert, reconciler.cluster.services.values()), Upsert(THREE),
                                            *map(Upsert, reconciler.cluster.nodes.values())], on=HERE)  # fmt: skip
        return marks

    assert marked() == set()
    reconciler.apply([Upsert(direct)])
    assert marked() == {"192.168.0.1"}
    reconciler.apply([Upsert(node("node-b", addresses=["192.168.0.2"]))])
    assert marked() == {"192.168.0.1", "192.168.0.2"}
    reconciler.apply([Upsert(node("node-b", addresses=["192.168.0.3"]))])
    assert marked() == {"192.168.0.1", "192.168.0.3"}
    reconciler.apply([Delete(node("node-b").ref)])
    assert marked() == {"192.168.0.1"}
    reconciler.apply([Upsert(WEB)])
    assert marked() == set()


def test_what_another_node_sends_on_is_a_way_of_this_ones_too():
    """A flow to the node port of another node: its backend is judged as at this node's own."""
    direct = service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)], direct=True)
    reconciler, _ = started(direct, THREE, node("node-b", addresses=["192.168.0.2"]))
    there = frontend("192.168.0.2", 30080)
    assert reconciler.fate(there, backend("10.0.0.1")) == Fate.CHOSEN
    assert reconciler.fate(there, backend("10.0.0.9")) == Fate.GONE
    assert reconciler.fate(frontend("192.168.0.3", 30080), backend("10.0.0.1")) == Fate.NO_SERVICE
    assert not reconciler.is_frontend(there), "a pod's call of that address is the other node's to translate"


def test_members_come_before_the_annotation_and_go_after_it():
    reconciler, tables = started(WEB, THREE)
    assert not dict(tables["members"].items())
    for value, members in ((True, 3), (False, 3), (None, 0)):
        changed = service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)], direct=value)
        reconciler.apply([Upsert(changed)])
        assert len(dict(tables["members"].items())) == members


def test_a_set_that_no_frontend_leads_to_is_not_kept():
    old = service("old", "10.96.0.1", created="2020")
    reconciler, tables = started(WEB, THREE, old, on=host())
    assert set_key(SET) in dict(tables["sets"].items()), "its NodePort"
    reconciler.apply([Upsert(service("web", "10.96.0.1"))])
    assert set_key(SET) not in dict(tables["sets"].items())
    assert dict(tables["slots"].items()) == {}
    reconciler.apply([Delete(old.ref)])
    assert len(slots(tables)) == 3


def test_an_endpoint_of_a_set_with_members_is_three_writes():
    """The member that goes, the one that comes, the slot."""
    sticky = service("web", "10.96.0.1", affinity_s=100)
    reconciler, tables = started(sticky, THREE)
    before = writes(tables)
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.9"]))])
    assert writes(tables) == before + 3
    assert {abi.Member.unpack(key).backend.pack() for key, _ in tables["members"].items()} == set(slots(tables))


def test_an_affinity_that_lasts_otherwise_is_one_write_for_each_frontend():
    reconciler, tables = started(service("web", "10.96.0.1", affinity_s=100), THREE)
    before = writes(tables)
    reconciler.apply([Upsert(service("web", "10.96.0.1", affinity_s=200))])
    assert writes(tables) == before + 1


def test_a_consistent_set_is_its_table_however_it_came_to_its_backends():
    maglev = service("web", "10.96.0.1", consistent=True)
    reconciler, tables = started(maglev, THREE)
    for ready in (["10.0.0.3"], ["10.0.0.2", "10.0.0.3"], ["10.0.0.3", "10.0.0.1", "10.0.0.2"]):
        reconciler.apply([Upsert(piece("web", "a", ready))])
    assert slots(tables) == records(consistent("default/web:http/6", dict.fromkeys(records_of(THREE), 1)))
    before = writes(tables)
    fresh = Reconciler(tables, "node-a")
    fresh.set_host(HERE)
    fresh.apply([Upsert(maglev), Upsert(THREE), Synced()])
    assert writes(tables) == before


def records_of(given) -> list[bytes]:
    return [given.endpoints[at : at + 16] + (8080).to_bytes(2, "big") + b"\0\0" for at in range(0, 51, 17)]


def test_a_table_that_has_no_room_twice_is_written_in_place():
    reconciler, tables = started(service("web", "10.96.0.1", consistent=True), THREE, slots=260)
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"]))])
    want = dict.fromkeys(records_of(THREE)[:2], 1)
    assert slots(tables) == records(consistent("default/web:http/6", want))
    assert reconciler.problems == []


@pytest.mark.parametrize(
    ("table", "size", "field", "more"),
    [
        ("services", 3, "spec.ports", {}),
        ("sets", 0, "endpoints", {}),
        ("slots", 2, "endpoints", {}),
        ("members", 2, "endpoints", {"affinity_s": 100}),
    ],
)
def test_what_a_table_has_no_room_for_is_named_and_comes_when_there_is(table: str, size: int, field: str, more):
    first = service("first", "10.96.0.9")
    second = service("web", "10.96.0.1", **more)
    sizes = {table: size + 1} if table == "sets" else {table: size}
    reconciler, tables = started(first, second, THREE, on=host(), clock=(clock := Clock()), **sizes)
    [problem] = reconciler.problems
    assert problem.ref == second.ref
    assert problem.field == field
    assert f"table {table}" in problem.reason
    assert reconciler.late is False
    reconciler.apply([Delete(first.ref), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"]))])
    settle(reconciler, clock)
    assert reconciler.problems == []
    assert dump.summary(tables) == run([Upsert(second), Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"]))])


def test_a_set_without_room_for_it_beside_the_one_it_replaces():
    """What a frontend leads to makes way for what it will lead to, if that is enough; else it stays."""
    ports = [("http", TCP, 8080), ("other", TCP, 8081)]
    many = piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"], ports=ports)
    reconciler, tables = started(service("web", "10.96.0.1"), many, on=host(), clock=(clock := Clock()), slots=4)
    renamed = service("web", "10.96.0.1", ports=[("other", TCP, 80)])
    reconciler.apply([Upsert(renamed)])
    settle(reconciler, clock)
    assert dump.summary(tables) == run([Upsert(renamed), Upsert(many)])
    assert reconciler.problems == []


def test_a_frontend_waits_for_its_set():
    tables = memory_tables()
    tables["sets"] = faulty = FaultyTable(tables["sets"], 1.0, seed=1, limit=0)
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.apply([Upsert(service("web", "10.96.0.1")), Upsert(THREE), Synced()])
    faulty.left = 100
    renamed = service("web", "10.96.0.1", ports=[("other", TCP, 80)])
    reconciler.apply([Upsert(renamed)])
    led = abi.Service.unpack(tables["services"].get(frontend("10.96.0.1", 80)) or b"")
    assert led.inside == SET
    assert len(slots(tables)) == 3, "what it leads to stays for as long"
    faulty.left = 0
    settle(reconciler, clock)
    assert dump.summary(tables) == run([Upsert(renamed), Upsert(THREE)])


def test_fates():
    web = service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)], external_local=True)
    given = piece("web", "a", ["10.0.0.1", "10.0.0.2"], not_ready=["10.0.0.3"], leaving=["10.0.0.4"], here=["10.0.0.1"])
    reconciler, _ = started(web, given)
    want = [Fate.CHOSEN, Fate.CHOSEN, Fate.LISTED, Fate.SERVING, Fate.GONE]
    for key in (frontend("10.96.0.1", 80), frontend("192.168.0.1", 30080)):
        assert reconciler.is_frontend(key)
        assert [reconciler.fate(key, backend(f"10.0.0.{n}")) for n in range(1, 6)] == want
    for key in (frontend("192.168.0.9", 30080), frontend("192.168.0.1", 30081), frontend("10.96.0.1", 81)):
        assert not reconciler.is_frontend(key)
        assert reconciler.fate(key, backend("10.0.0.1")) == Fate.NO_SERVICE


def test_nothing_is_gone_while_a_slice_may_not_be_known():
    reconciler = Reconciler(memory_tables(), "node-a", Clock())
    reconciler.apply([Upsert(WEB), Upsert(THREE), Synced(complete=False)])
    asked = frontend("10.96.0.1", 80), backend("10.0.0.9")
    assert reconciler.fate(*asked) == Fate.LISTED
    reconciler.apply([Synced()])
    assert reconciler.fate(*asked) == Fate.GONE


def test_an_endpoint_that_was_only_terminating_turns_when_it_goes():
    reconciler, _ = started(WEB, piece("web", "a", ["10.0.0.1"], leaving=["10.0.0.2"]))
    before = reconciler.turns
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1"]))])
    assert reconciler.turns > before


def test_an_endpoint_of_another_zone_turns_when_it_goes():
    hints = {"10.0.0.1": Hint(("zone-a",)), "10.0.0.2": Hint(("zone-b",))}
    reconciler, _ = started(node(zone="zone-a"), WEB, piece("web", "a", ["10.0.0.1", "10.0.0.2"], hints=hints))
    before = reconciler.turns
    reconciler.apply([Upsert(piece("web", "a", ["10.0.0.1"], hints=hints))])
    assert reconciler.turns > before


def test_a_zone_that_changes_is_a_matter_of_what_has_hints():
    hints = {"10.0.0.1": Hint(("zone-a",)), "10.0.0.2": Hint(("zone-b",)), "10.0.0.3": Hint(("zone-b",))}
    hinted = piece("web", "a", ["10.0.0.1", "10.0.0.2", "10.0.0.3"], hints=hints)
    others = [service("other", "10.96.0.2"), piece("other", "a", ["10.0.0.1"])]
    reconciler, tables = started(node(zone="zone-a"), WEB, hinted, *others)
    assert len(slots(tables)) == 1
    reconciler.apply([Upsert(node(zone="zone-b"))])
    assert len(slots(tables)) == 2
    before = writes(tables)
    reconciler.apply([Upsert(node(zone="zone-b", pod_cidrs=["10.0.0.0/24"])), Upsert(node("node-b", zone="zone-c"))])
    assert writes(tables) == before + 1, "the block"


def test_weights_that_are_taken_back():
    """The last slice with a weight says 1: what was a table of shares is a set of backends again."""
    heavy = piece("web", "b", ["10.0.1.1", "10.0.1.2"], weight=3)
    reconciler, tables = started(WEB, THREE, heavy)
    before = abi.Set.unpack(tables["sets"].get(set_key(SET)) or b"")
    assert (before.count, before.flags) == (9, abi.SetFlag.WEIGHTED)
    reconciler.apply([Upsert(piece("web", "b", ["10.0.1.1", "10.0.1.2"]))])
    now = abi.Set.unpack(tables["sets"].get(set_key(SET)) or b"")
    assert (now.count, now.flags) == (5, 0)
    assert len(list(tables["slots"].items())) == 5


def test_source_ranges_without_room_let_nobody_in_and_are_named():
    door: dict[str, Any] = {"ports": [("http", TCP, 80)], "load_balancer_ips": ["203.0.113.1"]}
    narrow = service("narrow", "10.96.0.1", source_ranges=["192.0.2.0/24", "198.51.100.0/24"], **door)
    reconciler, tables = started(narrow, ranges=1)
    (kept,) = tables["ranges"].items()
    entry = abi.Service.unpack(tables["services"].get(frontend("203.0.113.1", 80)) or b"")
    assert entry.ranges == abi.Range.unpack(kept[0]).service  # to this service's ranges, of which one is missing
    (told,) = reconciler.refusals
    assert str(told.problem) == (
        "Service default/narrow: spec.loadBalancerSourceRanges: needs 1 more source ranges, and table ranges "
        "(1 entries) is full: clients in these are dropped"
    )
    assert told.partial
    before = reconciler.told
    reconciler.apply([Upsert(service("narrow", "10.96.0.1", source_ranges=["198.51.100.0/24"], **door))])
    assert reconciler.problems == []
    assert reconciler.told != before
    assert [abi.Range.unpack(key).prefix_length for key, _ in tables["ranges"].items()] == [64 + 96 + 24]


def test_no_source_range_has_room():
    narrow = service(
        "narrow", "10.96.0.1", load_balancer_ips=["203.0.113.1"], source_ranges=["192.0.2.0/24"], ports=[("", TCP, 80)]
    )
    other = service(
        "other", "10.96.0.2", load_balancer_ips=["203.0.113.2"], source_ranges=["192.0.2.0/24"], ports=[("", TCP, 80)]
    )
    reconciler, tables = started(narrow, other, ranges=1)
    shut = {each.problem.ref.name for each in reconciler.refusals}
    assert len(shut) == 1
    for address in ("203.0.113.1", "203.0.113.2"):
        assert abi.Service.unpack(tables["services"].get(frontend(address, 80)) or b"").ranges
