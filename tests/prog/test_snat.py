"""Source NAT: clients outside whose backend is on another node, and what comes back, with every error on the way."""

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.all import ICMP, IP, ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, Hook, Outcome
from ebpfnet.datapath import testrun
from tests import packets
from tests.packets import CLIENT_PORT, POD_PORT
from tests.prog.uplink import NODE_PORT, NOTHING_DECIDED, OUR_MAC, REDIRECT, ROUTER_MAC, SOURCE_PORTS, UPLINK, Uplink

BUILD: dict[int, Callable[..., Packet]] = {6: packets.tcp, 17: packets.udp, 132: packets.sctp}


@pytest.fixture(params=BUILD, ids=["tcp", "udp", "sctp"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def ip_of(packet: Packet) -> Packet:
    return packet[IPv6] if IPv6 in packet else packet[IP]


def ask(uplink: Uplink, protocol: int = 6, sport: int = CLIENT_PORT) -> Packet:
    """Send a client's first packet; return what leaves for Carol."""
    uplink.serve("carol", protocol=protocol)
    got = uplink.come(BUILD[protocol](sport=sport, dport=NODE_PORT), ttl=64)
    assert (got.outcome, got.ifindex, got.retval) == (Outcome.NETWORK, UPLINK, REDIRECT), got.reason
    assert packets.has_right_checksums(got.raw)
    return got.packet


def test_there_and_back(uplink: Uplink, protocol: int) -> None:
    ends = uplink.ends
    left = ask(uplink, protocol)
    header = ip_of(left)
    assert (left.src, left.dst, header.src, header.dst) == (OUR_MAC, ROUTER_MAC, uplink.node, ends.carol)
    assert SOURCE_PORTS[0] <= header.payload.sport <= SOURCE_PORTS[1]
    assert header.payload.dport == POD_PORT
    answer = BUILD[protocol](sport=POD_PORT, dport=header.payload.sport)
    back = uplink.come(answer, source=ends.carol, ttl=64)
    assert (back.outcome, back.ifindex, back.retval) == (Outcome.NETWORK, UPLINK, REDIRECT)
    header = ip_of(back.packet)
    assert (header.src, header.payload.sport) == (uplink.node, NODE_PORT)
    assert (header.dst, header.payload.dport) == (ends.outside, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)
    assert len(uplink.datapath.flows()) == 2
    again = uplink.come(BUILD[protocol](dport=NODE_PORT), ttl=64)
    assert ip_of(again.packet).payload.sport == ip_of(left).payload.sport


def test_clients_of_one_port_are_told_apart(uplink: Uplink) -> None:
    uplink.set_node((45000, 45063))
    seen = set()
    for number in range(12):
        uplink.serve("carol")
        source = f"2001:db8:99::{number:x}" if uplink.ends.ipv6 else f"192.0.2.{100 + number}"
        got = uplink.come(packets.tcp(dport=NODE_PORT), source=source)
        assert got.outcome == Outcome.NETWORK
        seen.add(ip_of(got.packet).payload.sport)
    assert len(seen) == 12


def test_no_port_is_left(uplink: Uplink, protocol: int) -> None:
    uplink.set_node((45000, 45000))
    assert ip_of(ask(uplink, protocol)).payload.sport == 45000
    got = uplink.come(BUILD[protocol](sport=CLIENT_PORT + 1, dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_SOURCE_PORT)
    assert uplink.datapath.drops(Hook.FROM_NETWORK, DropReason.NO_SOURCE_PORT) >= 1
    assert len(uplink.datapath.flows()) == 2


def test_a_port_whose_connection_is_over_is_used_again(uplink: Uplink) -> None:
    uplink.set_node((45000, 45000))
    ask(uplink)
    long_ago = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - (abi.TIMEOUT_TCP_NEW_S + 1) * 10**9
    for key, flow in uplink.datapath.flows().items():
        uplink.datapath.tables["flows"].put(key.pack(), replace(flow, seen_ns=long_ago).pack())
    got = uplink.come(packets.tcp(sport=CLIENT_PORT + 1, dport=NODE_PORT))
    assert got.outcome == Outcome.NETWORK


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_process_that_has_the_port_keeps_it(uplink: Uplink, kind: socket.SocketKind) -> None:
    uplink.set_node((45000, 45000))
    family = socket.AF_INET6 if uplink.ends.ipv6 else socket.AF_INET
    protocol = 6 if kind == socket.SOCK_STREAM else 17
    uplink.serve("carol", protocol=protocol)
    with socket.socket(family, kind) as taken:
        taken.bind((uplink.node, 45000))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        got = uplink.come(BUILD[protocol](dport=NODE_PORT))
        assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_SOURCE_PORT)
    assert uplink.come(BUILD[protocol](dport=NODE_PORT)).outcome == Outcome.NETWORK


@pytest.mark.parametrize(("ports", "address", "reason"), [
    ((45001, 45000), None, DropReason.NO_SOURCE_PORT),
    (SOURCE_PORTS, "", DropReason.NO_SOURCE_ADDRESS),
])  # fmt: skip
def test_a_node_without_ports_or_address(
    uplink: Uplink, ports: tuple[int, int], address: str | None, reason: DropReason
) -> None:
    uplink.set_node(ports, address)
    uplink.serve("carol")
    got = uplink.come(packets.tcp(dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.DROP, reason)
    assert not uplink.datapath.flows()


def test_an_error_from_the_backend_reaches_the_client(uplink: Uplink, protocol: int) -> None:
    ends = uplink.ends
    left = ask(uplink, protocol)
    got = uplink.come(packets.unreachable(ends, ip_of(left)), source=ends.carol, ttl=64)
    header = ip_of(got.packet)
    assert (got.outcome, got.ifindex, header.src, header.dst) == (Outcome.NETWORK, UPLINK, uplink.node, ends.outside)
    assert packets.has_right_checksums(got.raw)
    quoted = bytes(got.packet[ICMPv6DestUnreach if ends.ipv6 else ICMP].payload)
    inner = IPv6(quoted) if ends.ipv6 else IP(quoted)
    assert (inner.src, inner.payload.sport) == (ends.outside, CLIENT_PORT)
    assert (inner.dst, inner.payload.dport) == (uplink.node, NODE_PORT)


@pytest.mark.parametrize("who", ["client", "router"])
def test_an_error_from_the_client_s_side_reaches_the_backend(uplink: Uplink, protocol: int, who: str) -> None:
    """Path MTU discovery from the backend's side: it hears how large its answers may be."""
    ends = uplink.ends
    port = ip_of(ask(uplink, protocol)).payload.sport
    answer = packets.ip(uplink.node, ends.outside) / BUILD[protocol](sport=NODE_PORT, dport=CLIENT_PORT)
    router = "2001:db8:5::5" if ends.ipv6 else "203.0.113.5"
    got = uplink.come(packets.too_big(ends, answer), source=ends.outside if who == "client" else router, ttl=64)
    header = ip_of(got.packet)
    assert (got.outcome, header.dst) == (Outcome.NETWORK, ends.carol)
    assert header.src == (uplink.node if who == "client" else router)
    assert packets.has_right_checksums(got.raw)
    quoted = bytes(got.packet[ICMPv6PacketTooBig if ends.ipv6 else ICMP].payload)
    inner = IPv6(quoted) if ends.ipv6 else IP(quoted)
    assert (inner.src, inner.payload.sport) == (ends.carol, POD_PORT)
    assert (inner.dst, inner.payload.dport) == (uplink.node, port)


def test_an_answer_that_the_client_s_path_does_not_take(uplink: Uplink) -> None:
    """The backend, elsewhere, is told by us: the packet was for an address of ours."""
    ends = uplink.ends
    port = ip_of(ask(uplink, 17)).payload.sport
    got = uplink.come(packets.udp(POD_PORT, port, bytes(1600)), source=ends.carol, ttl=64)
    header = ip_of(got.packet)
    assert (got.outcome, got.reason, header.src, header.dst) == (
        Outcome.REJECT, DropReason.TOO_BIG, uplink.node, ends.carol,
    )  # fmt: skip
    assert packets.has_right_checksums(got.raw)


def test_fragments_follow_the_first(uplink: Uplink) -> None:
    ends = uplink.ends
    uplink.serve("carol", protocol=17)
    whole = bytes(packets.udp(dport=NODE_PORT, data=bytes(1000)))
    pieces = packets.pieces(ends.outside, uplink.node, whole, 512)
    went = [uplink.raw(packets.ethernet(ROUTER_MAC, OUR_MAC) / piece) for piece in pieces]
    assert [(each.outcome, ip_of(each.packet).dst, ip_of(each.packet).src) for each in went] == [
        (Outcome.NETWORK, ends.carol, uplink.node)
    ] * len(pieces)


def test_a_card_s_sum_follows(uplink: Uplink) -> None:
    ends = uplink.ends
    uplink.serve("carol", protocol=17)
    question = packets.ip(ends.outside, uplink.node) / packets.udp(dport=NODE_PORT)
    fd = uplink.datapath.programs["from_network"].fd
    sent = bytes(packets.ethernet(ROUTER_MAC, OUR_MAC) / question)
    try:
        done = testrun.run(fd, sent, ingress_ifindex=UPLINK, ifindex=UPLINK, checksum_complete=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # else this kernel can't tell
            raise
        done = testrun.run(fd, sent, ingress_ifindex=UPLINK, ifindex=UPLINK)
    assert done.cb[0] == Outcome.NETWORK


def test_a_pod_of_another_node_is_a_client_like_any(uplink: Uplink) -> None:
    other = "fd02::99" if uplink.ends.ipv6 else "10.1.2.99"
    uplink.serve("carol")
    got = uplink.come(packets.tcp(dport=NODE_PORT), source=other)
    assert (got.outcome, ip_of(got.packet).src) == (Outcome.NETWORK, uplink.node)


def test_the_flow_says_who_it_was(uplink: Uplink) -> None:
    port = ip_of(ask(uplink)).payload.sport
    ends = uplink.ends
    there = packets.tuple_of(ends.outside, uplink.node, CLIENT_PORT, NODE_PORT, 6)
    back = packets.tuple_of(ends.carol, uplink.node, POD_PORT, port, 6)
    forward, reply = uplink.datapath.flow(there), uplink.datapath.flow(back)
    assert forward is not None
    assert reply is not None
    assert (forward.to, reply.to) == (back.reverse(), there.reverse())
    assert (forward.flags, reply.flags) == (FlowFlag.NAT, FlowFlag.NAT | FlowFlag.REPLY)
    assert not forward.from_.ifindex | forward.deliver.ifindex | reply.from_.ifindex | reply.deliver.ifindex
    assert abi.FlowState.NEW == forward.state == reply.state


def test_what_is_no_answer_is_the_host_s(uplink: Uplink) -> None:
    ask(uplink)
    got = uplink.come(packets.tcp("A", sport=POD_PORT, dport=1234), source=uplink.ends.carol)
    assert (got.outcome, got.retval) == (Outcome.STACK, NOTHING_DECIDED)
