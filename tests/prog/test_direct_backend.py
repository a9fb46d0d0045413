"""Direct server return at the backend's node: what is taken out of a second header, and what never is."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from scapy.all import IP, Ether, IPv6, IPv6ExtHdrDestOpt, Packet

from ebpfnet import abi
from ebpfnet.abi import BlockKind, DropReason, FlowFlag, Hook, Mark, Outcome
from ebpfnet.datapath import testrun
from tests import packets
from tests.packets import ALICE_IFINDEX, ALICE_MAC, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT
from tests.prog.direct import BOTH, PEER, asked, balancer, serve, wrapped
from tests.prog.loaded import Result
from tests.prog.serving import TRANSPORTS, ends_of, ip_of, mark, put_block, put_range
from tests.prog.uplink import NODE_PORT, OUR_MAC, ROUTER_MAC, UPLINK, Uplink

Build = Callable[..., Packet]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answer_of(uplink: Uplink, got: Result, transport: str) -> Packet:
    """Return the first answer of who got a packet."""
    protocol, build = TRANSPORTS[transport]
    called = ends_of(got)
    fields = {"flags": "SA"} if protocol == 6 else {}
    segment = build(sport=called.destination_port, dport=called.source_port, **fields)
    return packets.ip(called.destination, called.source, ttl=64) / segment


@pytest.mark.parametrize("target", ["node port", "balancer"])
def test_to_a_pod_here_and_straight_back(uplink: Uplink, transport: str, target: str) -> None:
    """Byte for byte what the client sent, to the pod; the answer is the service's, and leaves from here."""
    ends, (protocol, build) = uplink.ends, TRANSPORTS[transport]
    serve(uplink, "alice", protocol)
    to, port = (PEER[ends.ipv6], NODE_PORT) if target == "node port" else (balancer(ends), SERVICE_PORT)
    got = uplink.raw(wrapped(uplink, asked(uplink, build(dport=port), to), "alice"))
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    expected = packets.ip(ends.outside, ends.alice, ttl=60) / build(dport=POD_PORT)
    assert got.raw == bytes(Ether(src=OUR_MAC, dst=ALICE_MAC) / expected)
    back = uplink.datapath.from_pod(packets.ethernet() / answer_of(uplink, got, transport))
    assert (back.outcome, back.ifindex) == (Outcome.NETWORK, UPLINK)
    assert ends_of(back) == (to, ends.outside, port, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)
    flow = uplink.datapath.flow(packets.tuple_of(ends.outside, to, CLIENT_PORT, port, protocol))
    assert flow
    assert flow.flags == FlowFlag.NAT
    assert len(uplink.datapath.flows()) == 2


def test_what_follows_needs_neither_port_nor_service(uplink: Uplink) -> None:
    """A train's segments count the identification up; and the annotation, or the service, may be gone by now."""
    serve(uplink, "alice")
    uplink.raw(wrapped(uplink, asked(uplink, packets.tcp(dport=NODE_PORT)), "alice"))
    uplink.datapath.tables["services"].delete(
        abi.Frontend(packets.raw("::" if uplink.ends.ipv6 else "0.0.0.0"), NODE_PORT, 6).pack()
    )
    got = uplink.raw(wrapped(uplink, asked(uplink, packets.tcp("A", dport=NODE_PORT)), "alice", POD_PORT + 7))
    assert (got.outcome, ends_of(got).destination) == (Outcome.POD, uplink.ends.alice)


def test_to_a_process_of_this_node(uplink: Uplink) -> None:
    """A backend in the host's network: its answer is the service's when the socket sends it."""
    serve(uplink, uplink.node)
    got = uplink.raw(wrapped(uplink, asked(uplink, packets.tcp(dport=NODE_PORT)), uplink.node))
    assert (got.outcome, ends_of(got)) == (
        Outcome.STACK,
        (uplink.ends.outside, uplink.node, CLIENT_PORT, POD_PORT),
    )
    back = uplink.go(packets.tcp("SA", POD_PORT, CLIENT_PORT), uplink.ends.outside)
    assert ends_of(back) == (PEER[uplink.ends.ipv6], uplink.ends.outside, NODE_PORT, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_to_a_pod_on_another_plugin_s_wire(uplink: Uplink) -> None:
    wire = abi.Wire(BOB_IFINDEX, bytes.fromhex(BOB_MAC.replace(":", "")), 55)
    uplink.datapath.tables["pods"].put(packets.raw(uplink.ends.bob), abi.Pod(wire, 2).pack())
    serve(uplink, "bob")
    got = uplink.raw(wrapped(uplink, asked(uplink, packets.tcp(dport=NODE_PORT)), "bob"))
    assert (got.outcome, ends_of(got).destination, packets.has_right_checksums(got.raw)) == (
        Outcome.STACK,
        uplink.ends.bob,
        True,
    )
    answer = packets.ethernet(BOB_MAC) / answer_of(uplink, got, "tcp")
    left = uplink.datapath.run("to_network_beside", answer, BOB_IFINDEX, device=UPLINK)
    assert ends_of(left) == (PEER[uplink.ends.ipv6], uplink.ends.outside, NODE_PORT, CLIENT_PORT)


def test_the_annotation_that_says_false_still_takes(uplink: Uplink) -> None:
    serve(uplink, "alice", marks=Mark.TAKEN)
    assert uplink.raw(wrapped(uplink, asked(uplink, packets.tcp(dport=NODE_PORT)), "alice")).outcome == Outcome.POD


def is_left_alone(uplink: Uplink, packet: Packet, *, pod: bool = True) -> bool:
    """Tell whether a packet in a second header is what it is without a service: dropped for pods, else the host's."""
    before = len(uplink.datapath.flows())
    got = uplink.raw(packet)
    assert len(uplink.datapath.flows()) == before
    if pod:
        return (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_PROTOCOL)
    return (got.outcome, got.raw) == (Outcome.STACK, bytes(packet))


FORGED = ["no annotation", "no member", "port", "middle", "unknown address", "undefined port", "no service", "echo"]


@pytest.mark.parametrize("why", FORGED)
def test_nobody_gets_in_who_may_not_call(uplink: Uplink, why: str) -> None:
    ends = uplink.ends
    serve(uplink, "bob" if why == "no member" else "alice", marks=Mark(0) if why == "no annotation" else BOTH)
    other = "2001:db8:7::55" if ends.ipv6 else "192.0.2.55"
    segment = packets.tcp("A" if why == "middle" else "S", dport=81 if why == "undefined port" else NODE_PORT)
    to = {"unknown address": other, "no service": ends.alice}.get(why, "")
    inner = asked(uplink, packets.echo(ends) if why == "echo" else segment, to)
    assert is_left_alone(uplink, wrapped(uplink, inner, "alice", POD_PORT + 1 if why == "port" else POD_PORT))
    assert uplink.datapath.drops(Hook.FROM_NETWORK, DropReason.UNSUPPORTED_PROTOCOL)


def test_a_client_out_of_range(uplink: Uplink) -> None:
    serve(uplink, "alice", ranges=5)
    inner = asked(uplink, packets.tcp(), balancer(uplink.ends))
    assert is_left_alone(uplink, wrapped(uplink, inner, "alice"))
    put_range(uplink.datapath, 5, "2001:db8::/64" if uplink.ends.ipv6 else "192.0.2.0/24")
    assert uplink.raw(wrapped(uplink, inner, "alice")).outcome == Outcome.POD


@pytest.mark.parametrize("source", ["nobody", "pod here", "this node", "pods' block"])
def test_clients_that_are_none(uplink: Uplink, source: str) -> None:
    ends = uplink.ends
    serve(uplink, "alice")
    put_block(uplink.datapath, "fd02::/64" if ends.ipv6 else "10.1.2.0/24", BlockKind.PODS)
    nobody = "::1" if ends.ipv6 else "127.0.0.1"
    address = {"nobody": nobody, "pod here": ends.bob, "this node": uplink.node, "pods' block": ends.carol}[source]
    inner = packets.ip(address, PEER[ends.ipv6], ttl=61) / packets.tcp(dport=NODE_PORT)
    packet = wrapped(uplink, inner, "alice")
    if source in {"nobody", "pods' block"}:
        assert is_left_alone(uplink, packet)
    else:
        got = uplink.raw(packet)
        assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS)


def test_a_second_header_for_somebody_else(uplink: Uplink) -> None:
    """For the host's own tunnels, for another node's pod: untouched, whatever is inside."""
    serve(uplink, "carol")
    inner = asked(uplink, packets.tcp(dport=NODE_PORT))
    assert is_left_alone(uplink, wrapped(uplink, inner, "carol"), pod=False)
    assert is_left_alone(uplink, wrapped(uplink, inner, uplink.node), pod=False)
    twice = wrapped(uplink, wrapped(uplink, inner, "alice").payload, "alice")
    assert is_left_alone(uplink, twice)


def test_options_before_the_second_header(uplink: Uplink) -> None:
    """Our own nodes put none there."""
    serve(uplink, "alice")
    packet = wrapped(uplink, asked(uplink, packets.tcp(dport=NODE_PORT)), "alice")
    if uplink.ends.ipv6:
        packet[IPv6].payload = IPv6ExtHdrDestOpt(nh=41) / packet[IPv6].payload
        packet[IPv6].nh = 60
    else:
        packet[IP].options = [b"\x01" * 4]
    assert is_left_alone(uplink, Ether(bytes(packet)))


def test_a_flow_of_another_kind_takes_nothing_in(uplink: Uplink) -> None:
    """An answer to a pod here may not come in a second header, nor what the node itself stands in for."""
    ends = uplink.ends
    serve(uplink, "alice")
    put = uplink.datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.outside) / packets.tcp(dport=9))
    assert put.outcome == Outcome.NETWORK
    answer = packets.ip(ends.outside, ends.alice) / packets.tcp("SA", 9, CLIENT_PORT)
    assert is_left_alone(uplink, wrapped(uplink, answer, "alice"))


def test_an_error_reaches_the_pod(uplink: Uplink, transport: str) -> None:
    ends, (protocol, build) = uplink.ends, TRANSPORTS[transport]
    serve(uplink, "alice", protocol)
    answer = packets.ip(PEER[ends.ipv6], ends.outside) / build(sport=NODE_PORT, dport=CLIENT_PORT)
    router = "2001:db8:5::5" if ends.ipv6 else "203.0.113.5"
    error = packets.ip(router, PEER[ends.ipv6], ttl=61) / packets.too_big(ends, answer)
    assert is_left_alone(uplink, wrapped(uplink, error, "alice"))
    uplink.raw(wrapped(uplink, asked(uplink, build(dport=NODE_PORT)), "alice"))
    got = uplink.raw(wrapped(uplink, error, "alice"))
    assert (got.outcome, got.ifindex, ip_of(got.packet).src) == (Outcome.POD, ALICE_IFINDEX, router)
    assert (ip_of(got.packet).dst, packets.has_right_checksums(got.raw)) == (ends.alice, True)


def test_a_time_to_live_that_ends_here(uplink: Uplink) -> None:
    """Its sender is told by the service, not the node that sent the packet on."""
    ends = uplink.ends
    serve(uplink, "alice")
    inner = packets.ip(ends.outside, PEER[ends.ipv6], ttl=1) / packets.tcp(dport=NODE_PORT)
    got = uplink.raw(wrapped(uplink, inner, "alice"))
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.TIME_EXCEEDED, UPLINK)
    assert (ip_of(got.packet).src, ip_of(got.packet).dst) == (PEER[ends.ipv6], ends.outside)
    assert packets.has_right_checksums(got.raw)


def test_fragments(uplink: Uplink) -> None:
    ends = uplink.ends
    serve(uplink, "alice", 17)
    head = 40 if ends.ipv6 else 20
    datagram = packets.udp(dport=NODE_PORT, data=bytes(2000))
    payload = bytes(packets.ip(ends.outside, PEER[ends.ipv6]) / datagram)[head:]
    pieces = packets.pieces(ends.outside, PEER[ends.ipv6], payload, 1200)
    assert is_left_alone(uplink, wrapped(uplink, pieces[1], "alice"))
    for piece in pieces:
        got = uplink.raw(wrapped(uplink, piece, "alice"))
        assert (got.outcome, ip_of(got.packet).dst) == (Outcome.POD, ends.alice)
        assert len(got.raw) == 14 + len(bytes(piece))


def test_the_client_who_comes_by_another_way_keeps_its_backend(uplink: Uplink) -> None:
    """Both nodes are called by one client: the flow that is here is followed, not what the other node says."""
    serve(uplink, "alice", 17)
    mark(uplink.datapath, PEER[uplink.ends.ipv6], Mark.NODE)
    uplink.raw(wrapped(uplink, asked(uplink, packets.udp(dport=NODE_PORT)), "alice"))
    serve(uplink, "bob", 17)
    got = uplink.raw(wrapped(uplink, asked(uplink, packets.udp(dport=NODE_PORT)), "bob"))
    assert (got.outcome, ends_of(got).destination) == (Outcome.POD, uplink.ends.alice)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("way", ["out", "in"])
def test_a_card_s_sum_stays_right(uplink: Uplink, transport: str, way: str) -> None:
    protocol, build = TRANSPORTS[transport]
    serve(uplink, "carol" if way == "out" else "alice", protocol)
    if way == "out":
        header = Ether(src=ROUTER_MAC, dst=OUR_MAC) / packets.ip(uplink.ends.outside, uplink.node)
        packet = header / build(dport=NODE_PORT)
    else:
        packet = wrapped(uplink, asked(uplink, build(dport=NODE_PORT)), "alice")
    fd = uplink.datapath.programs["from_network"].fd
    try:
        done = testrun.run(fd, bytes(packet), ingress_ifindex=UPLINK, ifindex=UPLINK, checksum_complete=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        done = testrun.run(fd, bytes(packet), ingress_ifindex=UPLINK, ifindex=UPLINK)
    assert Outcome(done.cb[0]) == (Outcome.NETWORK if way == "out" else Outcome.POD)
