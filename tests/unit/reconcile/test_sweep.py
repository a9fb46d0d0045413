"""Which flows are over."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, FlowState, Protocol
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.reconcile.pods import NO_WIRE, WIRE
from ebpfnet.reconcile.routes import Fate
from ebpfnet.reconcile.sweep import SECOND, idle, misled, sweep
from tests.cluster import wire

NOW = 100_000 * SECOND


HERE, THERE, VIP = (abi.pack_address(ipaddress.ip_address(each)) for each in ("10.0.0.1", "10.0.1.1", "10.96.0.1"))


def connection(
    protocol: int = Protocol.UDP,
    state: FlowState = FlowState.NEW,
    idle_s: float = 0,
    ifindex: int = 1,
    service: int = 0,
) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Both entries of a connection from a pod here to one on another node."""
    asked = abi.Tuple(HERE, VIP, 1, 80, protocol) if service else abi.Tuple(HERE, THERE, 1, 2, protocol)
    there, back = abi.Tuple(HERE, THERE, 1, 2, protocol), abi.Tuple(THERE, HERE, 2, 1, protocol)
    nat = FlowFlag.NAT if service else FlowFlag(0)
    here, none = wire(ifindex) if ifindex else abi.Wire(0, bytes(6)), abi.Wire(0, bytes(6))
    seen = NOW - int(idle_s * SECOND)
    return (
        (asked.pack(), abi.Flow(there, seen, service, 0, here, none, state, nat, 0).pack()),
        (back.pack(), abi.Flow(asked.reverse(), seen, service, 0, none, here, state, FlowFlag.REPLY | nat, 0).pack()),
    )


def entry(protocol: int, state: FlowState, idle_s: float) -> tuple[bytes, bytes]:
    return connection(protocol, state, idle_s)[0]


class MemoryFlows(MemoryTable):
    """A table in memory that is read as the kernel's are."""

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        entries = list(self.items())
        yield b"".join(key for key, _ in entries), b"".join(value for _, value in entries)


@pytest.mark.parametrize(
    ("protocol", "state", "limit_s"),
    [
        (Protocol.TCP, FlowState.NEW, abi.TIMEOUT_TCP_NEW_S),
        (Protocol.TCP, FlowState.ESTABLISHED, abi.TIMEOUT_TCP_ESTABLISHED_S),
        (Protocol.TCP, FlowState.CLOSING, abi.TIMEOUT_TCP_CLOSING_S),
        (Protocol.TCP, FlowState.HALF_CLOSED, abi.TIMEOUT_TCP_HALF_CLOSED_S),
        (Protocol.SCTP, FlowState.ESTABLISHED, abi.TIMEOUT_TCP_ESTABLISHED_S),
        (Protocol.UDP, FlowState.NEW, abi.TIMEOUT_DATAGRAM_NEW_S),
        (Protocol.UDP, FlowState.ESTABLISHED, abi.TIMEOUT_DATAGRAM_ESTABLISHED_S),
        (Protocol.ICMP, FlowState.NEW, abi.TIMEOUT_DATAGRAM_NEW_S),
    ],
)
def test_time_outs(protocol: Protocol, state: FlowState, limit_s: int):
    assert not list(idle(*entry(protocol, state, limit_s - 1), NOW))
    assert list(idle(*entry(protocol, state, limit_s + 1), NOW))


def test_only_the_keys_that_are_over():
    old, young = entry(Protocol.UDP, FlowState.NEW, 1000), entry(Protocol.TCP, FlowState.NEW, 1)
    assert list(idle(young[0] + old[0], young[1] + old[1], NOW)) == [old[0]]


def packed(ifindex: int) -> bytes:
    return abi.Pod(wire(ifindex), 0).pack()[WIRE]


@pytest.mark.parametrize(
    ("wires", "wrong"),
    [
        ({HERE: packed(7)}, False),
        ({HERE: packed(8)}, True),
        ({}, True),
        ({HERE: packed(7), THERE: packed(8)}, True),
        ({HERE: packed(7), THERE: NO_WIRE}, False),
        (None, False),
    ],
)
def test_flows_with_another_wire_than_their_pod(wires: dict[bytes, bytes] | None, wrong: bool):
    forward, back = connection(ifindex=7)
    for key, value in (forward, back):
        assert bool(list(misled(key, value, wires))) is wrong


def swept(flows: MemoryFlows, **arguments: Any) -> int:
    return sweep(flows, NOW, **arguments).removed


def test_both_halves_of_a_connection_go_together():
    flows = MemoryFlows(abi.TABLES["flows"])
    forward, back = connection(idle_s=abi.TIMEOUT_DATAGRAM_NEW_S + 1)
    flows.put(*forward)
    flows.put(*connection()[1])
    assert swept(flows) == 0, "the other half saw a packet"
    flows.put(*back)
    assert swept(flows) == 2


def test_a_half_without_the_other_is_judged_alone():
    flows = MemoryFlows(abi.TABLES["flows"])
    flows.put(*connection(idle_s=abi.TIMEOUT_DATAGRAM_NEW_S + 1)[1])
    assert swept(flows) == 1


def test_a_connection_that_wakes_up_stays():
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(idle_s=abi.TIMEOUT_DATAGRAM_NEW_S + 1):
        flows.put(*half)

    @contextlib.contextmanager
    def waking():
        flows.put(*connection()[0])
        yield

    assert swept(flows, guard=waking()) == 0


def test_flows_made_before_their_pod_had_a_wire_are_removed_once_it_has():
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(ifindex=0):
        flows.put(*half)
    assert swept(flows, wires=dict) == 0
    assert swept(flows, wires=lambda: {HERE: packed(7)}) == 2


def test_a_packet_later_than_our_clock_is_young():
    assert not list(idle(*entry(Protocol.UDP, FlowState.NEW, -5), NOW))


def test_another_plugins_wires_mislead_nobody():
    (key, value), _ = connection(ifindex=7)
    flow = abi.Flow.unpack(value)
    beside = abi.Flow(flow.to, flow.seen_ns, 0, 0, flow.from_, flow.deliver, flow.state, FlowFlag.BESIDE, 0).pack()
    assert list(misled(key, value, {})) == [key]
    assert list(misled(key, beside, {})) == []


class Routes:
    """Services as a table of frontends and their backends; counts how it is asked."""

    def __init__(self, routes: dict[tuple[bytes, int, int], list[tuple[bytes, int]]], fate: Fate = Fate.CHOSEN) -> None:
        self.routes = {
            abi.Frontend(*frontend).pack(): [abi.Backend(*backend).pack() for backend in backends]
            for frontend, backends in routes.items()
        }
        self.asked = 0
        self.fate_of_all = fate

    def is_frontend(self, frontend: bytes) -> bool:
        self.asked += 1
        return frontend in self.routes

    def fate(self, frontend: bytes, backend: bytes) -> Fate:
        self.asked += 1
        if frontend == (5).to_bytes(8, "little"):
            return self.fate_of_all
        if frontend not in self.routes:
            return Fate.NO_SERVICE
        return self.fate_of_all if backend in self.routes[frontend] else Fate.GONE


STATES = [(Protocol.UDP, state) for state in (FlowState.NEW, FlowState.ESTABLISHED)] + [
    (protocol, FlowState.NEW) for protocol in (Protocol.TCP, Protocol.SCTP)
]


@pytest.mark.parametrize(("protocol", "state"), STATES)
@pytest.mark.parametrize(
    ("backends", "left"), [([(THERE, 2)], 2), ([(THERE, 3)], 0), ([(HERE, 2)], 0), ([], 0), (None, 0)]
)
def test_a_flow_to_a_backend_that_its_service_lost(
    protocol: Protocol, state: FlowState, backends: list[tuple[bytes, int]] | None, left: int
):
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(protocol, state, service=5):
        flows.put(*half)
    routes = Routes({} if backends is None else {(VIP, 80, protocol): backends})
    assert swept(flows, routes=routes) == 2 - left
    assert len(list(flows.items())) == left


@pytest.mark.parametrize(("protocol", "state"), STATES)
def test_a_flow_that_began_before_its_destination_was_a_service(protocol: Protocol, state: FlowState):
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(protocol, state):
        flows.put(*half)
    other = Protocol.TCP if protocol == Protocol.UDP else Protocol.UDP
    assert swept(flows, routes=Routes({(THERE, 3, protocol): [], (THERE, 2, other): []})) == 0
    assert swept(flows, routes=Routes({(HERE, 1, protocol): []})) == 0, "the client's port is no destination"
    assert swept(flows, routes=Routes({(THERE, 2, protocol): []})) == 2


def flags(flows: MemoryFlows) -> list[FlowFlag]:
    return [abi.Flow.unpack(value).flags & FlowFlag.GONE for _, value in flows.items()]


def played(protocol: int, state: FlowState, routes: Routes, **more: Any) -> tuple[int, int]:
    """Sweep one connection to a service; returns how many entries were removed and how many are marked."""
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(protocol, state, **({"service": 5} | more)):
        flows.put(*half)
    done = sweep(flows, NOW, routes=routes)
    assert done.ended == flags(flows).count(FlowFlag.GONE)
    return done.removed, done.ended


FATES = {
    Fate.CHOSEN: ((0, 0), (0, 0), (0, 0)),
    Fate.SERVING: ((0, 0), (2, 0), (0, 0)),
    Fate.LISTED: ((2, 0), (2, 0), (0, 0)),
    Fate.GONE: ((2, 0), (2, 0), (0, 2)),
}


@pytest.mark.parametrize("fate", FATES)
def test_what_becomes_of_a_flow_when_its_backend_is_worse(fate: Fate):
    udp, asked, answered = FATES[fate]
    for protocol in (Protocol.TCP, Protocol.SCTP):
        routes = Routes({(VIP, 80, protocol): [(THERE, 2)]}, fate)
        assert played(protocol, FlowState.NEW, routes) == asked
        assert played(protocol, FlowState.ESTABLISHED, routes) == answered
        assert played(protocol, FlowState.CLOSING, routes) == (0, 0)
    routes = Routes({(VIP, 80, Protocol.UDP): [(THERE, 2)]}, fate)
    assert played(Protocol.UDP, FlowState.NEW, routes) == udp
    assert played(Protocol.UDP, FlowState.ESTABLISHED, routes) == udp


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.SCTP])
def test_an_established_connection_outlives_its_service(protocol: Protocol):
    assert played(protocol, FlowState.ESTABLISHED, Routes({})) == (0, 0)
    routes = Routes({(THERE, 2, protocol): []})
    assert played(protocol, FlowState.ESTABLISHED, routes, service=0) == (0, 0), "it was no service's"


@pytest.mark.parametrize("fate", Fate)
def test_a_connection_by_socket_ends_with_its_backend(fate: Fate):
    flows = MemoryFlows(abi.TABLES["flows"])
    for key, value in connection(Protocol.TCP, FlowState.ESTABLISHED):
        flows.put(key, dataclasses.replace(abi.Flow.unpack(value), service=5).pack())
    done = sweep(flows, NOW, routes=Routes({}, fate))
    assert (done.removed, done.ended) == (0, 2 if fate == Fate.GONE else 0)


def test_a_connection_by_socket_that_nobody_answered_stays():
    flows = MemoryFlows(abi.TABLES["flows"])
    for key, value in connection(Protocol.TCP, FlowState.NEW):
        flows.put(key, dataclasses.replace(abi.Flow.unpack(value), service=5).pack())
    assert swept(flows, routes=Routes({}, Fate.GONE)) == 0


def test_a_connection_is_marked_once_and_nothing_else_of_it_changes():
    flows = MemoryFlows(abi.TABLES["flows"])
    halves = connection(Protocol.TCP, FlowState.ESTABLISHED, service=5)
    for half in halves:
        flows.put(*half)
    routes = Routes({(VIP, 80, Protocol.TCP): []})
    assert sweep(flows, NOW, routes=routes).ended == 2
    for key, value in halves:
        before, now = abi.Flow.unpack(value), abi.Flow.unpack(flows.get(key) or b"")
        assert now == dataclasses.replace(before, flags=before.flags | FlowFlag.GONE)
    assert sweep(flows, NOW, routes=routes) == (2, 0, 0)


def test_a_host_asks_from_an_interface_that_is_no_pods():
    asks, answers = connection(ifindex=7)
    for (key, value), reply in ((asks, False), (answers, True)):
        flow = abi.Flow.unpack(value)
        host = dataclasses.replace(flow, flags=flow.flags | FlowFlag.HOST).pack()
        assert list(misled(key, value, {})) == [key]
        assert list(misled(key, host, {})) == []
        wires = {HERE if reply else THERE: packed(9)}
        far = dataclasses.replace(flow, flags=flow.flags | FlowFlag.HOST).pack()
        assert list(misled(key, far, wires)) == ([] if reply else [key])


@pytest.mark.parametrize("state", [FlowState.ESTABLISHED, FlowState.HALF_CLOSED])
def test_a_connection_whose_answers_go_past_us_is_one_entry(state: FlowState):
    """The answers' key may be another connection's, which it does not touch."""
    flows = MemoryFlows(abi.TABLES["flows"])
    (key, value), _ = connection(Protocol.TCP, state, ifindex=0, service=5)
    other, _ = connection(Protocol.TCP, state, ifindex=0)
    flow = abi.Flow.unpack(value)
    flows.put(key, dataclasses.replace(flow, flags=flow.flags | FlowFlag.DIRECT).pack())
    flows.put(*other)
    routes = Routes({(VIP, 80, Protocol.TCP): []})
    assert sweep(flows, NOW, routes=routes) == (2, 0, 1)
    assert FlowFlag.GONE in abi.Flow.unpack(flows.get(key) or b"").flags
    assert FlowFlag.GONE not in abi.Flow.unpack(flows.get(other[0]) or b"").flags
    assert sweep(flows, NOW + 10**15, routes=routes).removed == 2


def test_a_half_that_another_connection_took_stays():
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in (*connection(), connection(service=5)[0]):
        flows.put(*half)
    assert swept(flows, routes=Routes({})) == 1
    assert sorted(key for key, _ in flows.items()) == sorted(key for key, _ in connection())


def test_flows_that_go_one_way_are_one_question():
    flows = MemoryFlows(abi.TABLES["flows"])
    (key, value), _ = connection(service=5)
    for port in range(1000):
        flows.put(key[:32] + port.to_bytes(2, "big") + key[34:], value)
    routes = Routes({(VIP, 80, Protocol.UDP): [(THERE, 2)]})
    assert swept(flows, routes=routes) == 0
    assert routes.asked == 1


def test_a_service_that_comes_back_meanwhile_keeps_its_flows():
    flows = MemoryFlows(abi.TABLES["flows"])
    for half in connection(service=5):
        flows.put(*half)
    routes = Routes({})

    class Guard(contextlib.nullcontext[None]):
        def __exit__(self, *_: object) -> None:
            routes.routes = Routes({(VIP, 80, Protocol.UDP): [(THERE, 2)]}).routes

    assert swept(flows, guard=Guard(), routes=routes) == 0


def test_a_host_that_answers_itself_does_so_over_loopback():
    """A host-network endpoint, called by a process of its node: neither end is a pod's."""
    loopback = abi.Wire(1, bytes(6))
    asks, answers = connection(ifindex=7)
    for (key, value), reply in ((asks, False), (answers, True)):
        flow = abi.Flow.unpack(value)
        flow = dataclasses.replace(flow, flags=flow.flags | FlowFlag.HOST)
        flow = dataclasses.replace(flow, from_=loopback) if reply else dataclasses.replace(flow, deliver=loopback)
        assert list(misled(key, flow.pack(), {})) == []
        assert list(misled(key, flow.pack(), {THERE: packed(9)})) == [key]
