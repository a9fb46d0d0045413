"""to_network and from_host: what this node's own processes ask of services, and what is answered."""

from collections.abc import Callable

import pytest
from scapy.all import ICMP, IP, TCP, ICMPv6PacketTooBig, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, Outcome
from tests import packets
from tests.packets import ALICE_IFINDEX, ALICE_MAC, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT
from tests.prog.loaded import Result
from tests.prog.uplink import (
    LOOPBACK,
    NODE_PORT,
    NOTHING_DECIDED,
    OUR_MAC,
    REDIRECT,
    ROUTER_MAC,
    UNRESOLVED,
    UPLINK,
    Uplink,
)

BUILD: dict[int, Callable[..., Packet]] = {6: packets.tcp, 17: packets.udp}
NO_MAC = "00:00:00:00:00:00"
OWN_PORT = 9090


class Way:
    """A process that calls a service: its cluster IP leaves by the uplink, its own NodePort by loopback."""

    def __init__(self, uplink: Uplink, name: str) -> None:
        self.uplink = uplink
        self.program, self.device, self.mac, self.port = {
            "uplink": ("to_network", UPLINK, OUR_MAC, SERVICE_PORT),
            "loopback": ("from_host", LOOPBACK, NO_MAC, NODE_PORT),
        }[name]
        self.target = uplink.ends.service if name == "uplink" else uplink.node

    def ask(self, packet: Packet, target: str = "") -> Result:
        return self.uplink.go(packet, target or self.target, program=self.program)


@pytest.fixture(params=["uplink", "loopback"])
def way(request: pytest.FixtureRequest, uplink: Uplink) -> Way:
    return Way(uplink, request.param)


@pytest.fixture(params=BUILD, ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ip_of(packet: Packet) -> Packet:
    return packet[IPv6] if IPv6 in packet else packet[IP]


def ends_of(packet: Packet) -> tuple[str, int, str, int]:
    header = ip_of(packet)
    return header.src, header.payload.sport, header.dst, header.payload.dport


def ttl(packet: Packet) -> int:
    return int(packet[IPv6].hlim if IPv6 in packet else packet[IP].ttl)


def answer(protocol: int, sport: int, dport: int = CLIENT_PORT) -> Packet:
    return BUILD[protocol](sport=sport, dport=dport, **({"flags": "SA"} if protocol == 6 else {}))


@pytest.mark.parametrize("plugin", ["ours", "beside"])
def test_of_a_pod_here(way: Way, protocol: int, plugin: str) -> None:
    uplink, ends, run = way.uplink, way.uplink.ends, way.uplink.datapath.run
    name, mac, ifindex, suffix = ("alice", ALICE_MAC, ALICE_IFINDEX, "")
    if plugin == "beside":
        name, mac, ifindex, suffix = ("bob", BOB_MAC, BOB_IFINDEX, "_beside")
        wire = abi.Wire(ifindex, bytes.fromhex(mac.replace(":", "")), 55)
        uplink.datapath.tables["pods"].put(packets.raw(ends.bob), abi.Pod(wire, 2).pack())
    pod = getattr(ends, name)
    uplink.serve(name, protocol=protocol)
    asked = way.ask(BUILD[protocol](dport=way.port))
    assert (asked.outcome, asked.ifindex, asked.retval) == (Outcome.POD, ifindex, REDIRECT)
    assert (asked.packet.dst, ttl(asked.packet)) == (mac, 64)
    assert asked.packet.src not in {mac, NO_MAC}
    assert ends_of(asked.packet) == (uplink.node, CLIENT_PORT, pod, POD_PORT)
    assert packets.has_right_checksums(asked.raw)
    # The pod's wire takes it as it is, and remembers nothing that would be in the way of the answers.
    assert run(f"to_pod{suffix}", asked.raw, 0).raw == asked.raw
    assert len(uplink.datapath.flows()) == 2
    sent = packets.ethernet(mac) / packets.ip(pod, uplink.node, ttl=64) / answer(protocol, POD_PORT)
    back = run(f"from_pod{suffix}", sent, ifindex)
    assert (back.outcome, back.ifindex, back.retval) == (Outcome.STACK, way.device, REDIRECT)
    assert (back.packet.dst, ttl(back.packet)) == (way.mac, 64)
    assert ends_of(back.packet) == (way.target, way.port, uplink.node, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)
    if way.device == UPLINK:
        assert uplink.raw(back.packet).raw == back.raw
    assert len(uplink.datapath.flows()) == 2


def test_of_a_pod_on_another_node(way: Way, protocol: int) -> None:
    uplink, ends = way.uplink, way.uplink.ends
    uplink.serve("carol", protocol=protocol)
    asked = way.ask(BUILD[protocol](dport=way.port))
    goes_on = NOTHING_DECIDED if way.device == UPLINK else REDIRECT
    assert (asked.outcome, asked.ifindex, asked.retval) == (Outcome.NETWORK, UPLINK, goes_on)
    assert (asked.packet.src, asked.packet.dst, ttl(asked.packet)) == (OUR_MAC, ROUTER_MAC, 64)
    assert ends_of(asked.packet) == (uplink.node, CLIENT_PORT, ends.carol, POD_PORT)
    assert packets.has_right_checksums(asked.raw)
    if way.device == LOOPBACK:  # it leaves by the uplink, where nothing is left to do
        assert uplink.datapath.run("to_network", asked.raw, 0, device=UPLINK).raw == asked.raw
    back = uplink.come(answer(protocol, POD_PORT), source=ends.carol, ttl=1)
    arrives = NOTHING_DECIDED if way.device == UPLINK else REDIRECT
    assert (back.outcome, back.ifindex, back.retval) == (Outcome.STACK, way.device, arrives)
    assert (back.packet.dst, ttl(back.packet)) == (way.mac, 1)
    assert ends_of(back.packet) == (way.target, way.port, uplink.node, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_of_a_process_of_the_node_itself(way: Way, protocol: int) -> None:
    uplink = way.uplink
    uplink.serve(uplink.node, OWN_PORT, protocol)
    asked = way.ask(BUILD[protocol](dport=way.port))
    goes_on = REDIRECT if way.device == UPLINK else NOTHING_DECIDED
    assert (asked.outcome, asked.ifindex, asked.retval) == (Outcome.STACK, LOOPBACK, goes_on)
    assert asked.packet.dst == NO_MAC
    assert ends_of(asked.packet) == (uplink.node, CLIENT_PORT, uplink.node, OWN_PORT)
    back = uplink.go(answer(protocol, OWN_PORT), uplink.node, program="from_host")
    assert (back.outcome, back.ifindex, back.retval) == (Outcome.STACK, way.device, goes_on)
    assert back.packet.dst == way.mac
    assert ends_of(back.packet) == (way.target, way.port, uplink.node, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_a_next_hop_without_a_mac_is_the_kernel_s_to_find(way: Way) -> None:
    backend = UNRESOLVED[way.uplink.ends.ipv6]
    way.uplink.serve(backend)
    asked = way.ask(packets.tcp(dport=way.port))
    assert (asked.outcome, asked.ifindex, asked.retval) == (Outcome.NETWORK, UPLINK, REDIRECT)
    assert ends_of(asked.packet)[2:] == (backend, POD_PORT)


def test_the_flow_says_where_answers_go(way: Way) -> None:
    uplink, ends = way.uplink, way.uplink.ends
    uplink.serve("alice")
    way.ask(packets.tcp(dport=way.port))
    key = packets.tuple_of(uplink.node, way.target, CLIENT_PORT, way.port, 6)
    forward = uplink.datapath.flow(key)
    reply = uplink.datapath.flow(packets.tuple_of(ends.alice, uplink.node, POD_PORT, CLIENT_PORT, 6))
    assert forward is not None
    assert reply is not None
    assert (forward.flags, reply.flags) == (
        FlowFlag.HOST | FlowFlag.NAT, FlowFlag.HOST | FlowFlag.NAT | FlowFlag.REPLY,
    )  # fmt: skip
    mine = abi.Wire(way.device, bytes.fromhex(way.mac.replace(":", "")))
    assert (forward.from_, reply.deliver) == (mine, mine)
    assert forward.deliver.ifindex == reply.from_.ifindex == ALICE_IFINDEX


@pytest.mark.parametrize("other", ["port", "middle", "echo", "error", "localhost"])
def test_what_is_for_no_service_is_left_alone(uplink: Uplink, other: str) -> None:
    uplink.serve("alice")
    ends = uplink.ends
    packet = {
        "port": packets.tcp(dport=4444),
        "middle": packets.tcp("A", dport=NODE_PORT),
        "echo": packets.echo(ends),
        "error": packets.unreachable(ends, packets.ip(uplink.node, uplink.node) / packets.udp()),
        "localhost": packets.tcp(dport=NODE_PORT),
    }[other]
    localhost = "::1" if ends.ipv6 else "127.0.0.1"
    targets = {"from_host": localhost if other == "localhost" else uplink.node, "to_network": ends.outside}
    for program, target in targets.items():
        got = uplink.go(packet, target, program=program)
        assert (got.outcome, got.retval, ip_of(got.packet).dst) == (Outcome.STACK, NOTHING_DECIDED, target)
    assert not uplink.datapath.flows()


def test_what_came_in_somewhere_is_none_of_a_process(uplink: Uplink) -> None:
    uplink.serve("alice")
    sent = packets.ethernet() / packets.ip(uplink.ends.outside, uplink.ends.service) / packets.tcp()
    assert uplink.datapath.run("to_network", sent, 5, device=UPLINK).raw == bytes(sent)
    assert not uplink.datapath.flows()


def test_a_refusal_goes_to_the_process(way: Way, protocol: int) -> None:
    way.uplink.serve("", protocol=protocol)
    got = way.ask(BUILD[protocol](dport=way.port))
    assert (got.outcome, got.reason, got.ifindex, got.retval) == (
        Outcome.REJECT, DropReason.NO_ENDPOINTS, way.device, REDIRECT,
    )  # fmt: skip
    header = ip_of(got.packet)
    assert (got.packet.dst, header.src, header.dst) == (way.mac, way.target, way.uplink.node)
    assert packets.has_right_checksums(got.raw)
    if protocol == 6:
        assert got.packet[TCP].flags == "RA"


@pytest.mark.parametrize("backend", ["alice", "carol"])
def test_a_datagram_that_the_way_does_not_take(way: Way, backend: str) -> None:
    way.uplink.serve(backend, protocol=17)
    got = way.ask(packets.udp(dport=way.port, data=bytes(1700)))
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.TOO_BIG, way.device)
    assert way.uplink.ends.ipv6 or got.packet[ICMP].nexthopmtu == 1500
    assert not way.uplink.ends.ipv6 or got.packet[ICMPv6PacketTooBig].mtu == 1500
    assert packets.has_right_checksums(got.raw)


@pytest.mark.parametrize("backend", ["alice", "carol"])
def test_an_error_from_the_backend_reaches_the_process(way: Way, protocol: int, backend: str) -> None:
    uplink, ends = way.uplink, way.uplink.ends
    uplink.serve(backend, protocol=protocol)
    asked = ip_of(way.ask(BUILD[protocol](dport=way.port)).packet)
    error = packets.unreachable(ends, asked)
    if backend == "alice":
        got = uplink.datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, uplink.node) / error)
    else:
        got = uplink.come(error, source=ends.carol)
    header = ip_of(got.packet)
    assert (got.outcome, got.ifindex, header.src, header.dst) == (Outcome.STACK, way.device, way.target, uplink.node)
    assert (got.packet.dst, packets.has_right_checksums(got.raw)) == (way.mac, True)


@pytest.mark.parametrize("backend", ["alice", "carol"])
def test_an_error_of_the_process_reaches_the_backend(way: Way, backend: str) -> None:
    """A socket that is closed meanwhile: port unreachable, to the service's address."""
    uplink, ends = way.uplink, way.uplink.ends
    uplink.serve(backend, protocol=17)
    way.ask(packets.udp(dport=way.port))
    answered = packets.ip(way.target, uplink.node) / packets.udp(way.port, CLIENT_PORT)
    got = way.ask(packets.unreachable(ends, answered))
    header = ip_of(got.packet)
    assert (header.src, header.dst) == (uplink.node, getattr(ends, backend))
    assert (got.outcome, got.ifindex) == (
        (Outcome.POD, ALICE_IFINDEX) if backend == "alice" else (Outcome.NETWORK, UPLINK)
    )
    assert packets.has_right_checksums(got.raw)


def test_a_closed_connection_is_in_no_one_s_way(uplink: Uplink) -> None:
    """A process that called a pod through a service calls it directly, from the same port."""
    ends = uplink.ends
    way = Way(uplink, "uplink")
    uplink.serve("alice")
    way.ask(packets.tcp(dport=way.port))
    way.ask(packets.tcp("R", dport=way.port))
    down = packets.ethernet(ROUTER_MAC, ALICE_MAC) / packets.ip(uplink.node, ends.alice) / packets.tcp(dport=POD_PORT)
    assert uplink.datapath.to_pod(down, 0).raw == bytes(down)
    sent = packets.ethernet() / packets.ip(ends.alice, uplink.node) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    assert uplink.datapath.from_pod(sent).raw == bytes(sent)
