"""Connections that the kernel translates, as entries of ours."""

from __future__ import annotations

import ipaddress

import pytest

from ebpfnet import abi
from ebpfnet.adopt import Left, Services, plan, write
from ebpfnet.datapath.conntrack import Translated
from ebpfnet.maps.memory import MemoryTable

TCP = abi.Protocol.TCP
CLUSTER, LOCAL = 11, 12
OURS, BESIDE = abi.Wire(5, b"alice1"), abi.Wire(6, b"bob123", 3)
UPLINK = abi.Wire(2, b"uplink")
NAT, REPLY, ASIDE, HOST = abi.FlowFlag.NAT, abi.FlowFlag.REPLY, abi.FlowFlag.BESIDE, abi.FlowFlag.HOST
NOW = 7


def raw(text: str) -> bytes:
    return abi.pack_address(ipaddress.ip_address(text))


PLACES = {
    4: {"vip": "10.96.0.1", "node": "192.0.2.1", "alice": "10.1.1.10", "bob": "10.1.3.11", "carol": "10.1.2.12",
        "outside": "198.51.100.9", "any": "0.0.0.0"},
    6: {"vip": "fd96::1", "node": "2001:db8::1", "alice": "fd01::10", "bob": "fd03::11", "carol": "fd02::12",
        "outside": "2001:db8:9::9", "any": "::"},
}  # fmt: skip


@pytest.fixture(params=[4, 6])
def places(request: pytest.FixtureRequest) -> dict[str, bytes]:
    return {name: raw(text) for name, text in PLACES[request.param].items()}


@pytest.fixture
def tables(places: dict[str, bytes]) -> dict[str, MemoryTable]:
    """Return a node's tables: a service whose backends are everywhere, of them only alice is in the local set."""
    found = {name: MemoryTable(abi.TABLES[name]) for name in ("services", "sets", "slots", "pods", "flows")}
    for address, port in ((places["vip"], 80), (places["any"], 30080)):
        found["services"].put(abi.Frontend(address, port, TCP).pack(), abi.Service(CLUSTER, LOCAL).pack())
    marks = abi.Service(0, 0, marks=abi.Mark.OWN | abi.Mark.NODEPORTS)
    found["services"].put(abi.Frontend(places["node"], 0, 0).pack(), marks.pack())
    for identity, names in ((CLUSTER, ("carol", "bob", "node")), (LOCAL, ("alice",))):
        found["sets"].put(identity.to_bytes(8, "little"), abi.Set(3, len(names)).pack())
        for index, name in enumerate(names):
            found["slots"].put(abi.Slot(identity, 3, index).pack(), abi.Backend(places[name], 8080).pack())
    found["pods"].put(places["alice"], abi.Pod(OURS, 1).pack())
    found["pods"].put(places["bob"], abi.Pod(BESIDE, 2).pack())
    return found


def said(places: dict[str, bytes], client: str, to: str, backend: str, stands_in: str = "") -> Translated:
    port = 30080 if to == "node" else 80
    question = abi.Tuple(places[client], places[to], 40000, port, TCP)
    source = abi.Tuple(places[stands_in or client], places[backend], 61000 if stands_in else 40000, 8080, TCP)
    return Translated(question, source.reverse())


def planned(tables: dict[str, MemoryTable], found: Translated) -> abi.Flow:
    adoption = plan(found, Services(tables, lambda _: UPLINK), NOW)
    assert adoption.key == found.question
    assert adoption.flow.to == found.answer.reverse()
    key, back = adoption.back
    assert key == found.answer
    assert back.to == found.question.reverse()
    assert (back.from_, back.deliver) == (adoption.flow.deliver, adoption.flow.from_)
    assert back.flags == adoption.flow.flags | REPLY
    assert adoption.guard == bool(adoption.flow.flags & ASIDE)
    return adoption.flow


NONE = abi.Wire(0, bytes(6))
LO = abi.Wire(1, bytes(6))


@pytest.mark.parametrize(
    ("client", "to", "backend", "stands_in", "flags", "wires", "service"),
    [
        ("alice", "vip", "carol", "", NAT, (OURS, NONE), CLUSTER),
        ("alice", "vip", "alice", "node", NAT, (OURS, OURS), LOCAL),
        ("bob", "vip", "carol", "", NAT | ASIDE, (BESIDE, NONE), CLUSTER),
        ("bob", "vip", "alice", "", NAT | ASIDE, (BESIDE, OURS), LOCAL),
        ("outside", "node", "alice", "", NAT, (NONE, OURS), LOCAL),
        ("outside", "node", "bob", "", NAT | ASIDE, (NONE, BESIDE), CLUSTER),
        ("outside", "node", "bob", "node", NAT, (NONE, BESIDE), CLUSTER),
        ("outside", "node", "carol", "node", NAT, (NONE, NONE), CLUSTER),
        ("outside", "node", "node", "", NAT, (NONE, NONE), CLUSTER),
        ("node", "vip", "carol", "", NAT | HOST, (UPLINK, NONE), CLUSTER),
        ("node", "vip", "bob", "", NAT | HOST, (UPLINK, BESIDE), CLUSTER),
        ("node", "vip", "node", "", NAT | HOST, (UPLINK, LO), CLUSTER),
    ],
)
def test_who_called_and_who_answers(
    tables: dict[str, MemoryTable],
    places: dict[str, bytes],
    client: str,
    to: str,
    backend: str,
    stands_in: str,
    flags: abi.FlowFlag,
    wires: tuple[abi.Wire, abi.Wire],
    service: int,
):
    flow = planned(tables, said(places, client, to, backend, stands_in))
    assert (flow.flags, flow.from_, flow.deliver, flow.service) == (flags, *wires, service)
    assert (flow.state, flow.seen_ns) == (abi.FlowState.ESTABLISHED, NOW)


@pytest.mark.parametrize(
    ("client", "to", "backend", "stands_in", "why"),
    [
        ("alice", "carol", "bob", "", "no service"),
        ("alice", "vip", "outside", "", "none of the service's"),
        ("bob", "vip", "carol", "node", "stands in"),
        ("outside", "node", "node", "node", "stands in"),
    ],
)
def test_what_stays_with_the_kernel(
    tables: dict[str, MemoryTable],
    places: dict[str, bytes],
    client: str,
    to: str,
    backend: str,
    stands_in: str,
    why: str,
):
    with pytest.raises(Left, match=why):
        planned(tables, said(places, client, to, backend, stands_in))


def test_what_is_ours_already_stays_as_it_is(tables: dict[str, MemoryTable], places: dict[str, bytes]):
    found = said(places, "alice", "vip", "carol")
    services = Services(tables, lambda _: UPLINK)
    write(plan(found, services, NOW), tables["flows"], lambda: None)
    with pytest.raises(Left, match="ours already"):
        plan(found, services, NOW)


def test_questions_reach_nobody_until_the_kernel_has_forgotten(
    tables: dict[str, MemoryTable], places: dict[str, bytes]
):
    found = said(places, "bob", "vip", "carol")
    adoption = plan(found, Services(tables, lambda _: UPLINK), NOW)
    flows, between = tables["flows"], []

    def forget() -> None:
        for key in (found.question, found.answer):
            held = flows.get(key.pack())
            assert held is not None
            between.append(abi.Flow.unpack(held).to)

    write(adoption, flows, forget)
    question, answer = between
    assert abi.unpack_address(question.destination).is_loopback
    assert answer == found.question.reverse()
    written = flows.get(found.question.pack())
    assert written == adoption.flow.pack()
