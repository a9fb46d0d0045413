"""from_network and what leads back: clients outside at NodePorts, cluster IPs and other addresses of services."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.all import ICMP, IP, TCP, ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, Outcome
from tests import packets
from tests.packets import (
    ALICE_IFINDEX,
    ALICE_MAC,
    BOB_IFINDEX,
    BOB_MAC,
    CLIENT_PORT,
    GATEWAY_MAC,
    POD_PORT,
    SERVICE_PORT,
)
from tests.prog.uplink import NODE_PORT, NOTHING_DECIDED, OUR_MAC, REDIRECT, ROUTER_MAC, UNRESOLVED, UPLINK, Uplink

BUILD: dict[int, Callable[..., Packet]] = {6: packets.tcp, 17: packets.udp}


def ends_of(packet: Packet) -> tuple[str, int, str, int]:
    header = packet[IPv6] if IPv6 in packet else packet[IP]
    return header.src, header.payload.sport, header.dst, header.payload.dport


def ttl(packet: Packet) -> int:
    return int(packet[IPv6].hlim if IPv6 in packet else packet[IP].ttl)


@pytest.fixture(params=BUILD, ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def beside(uplink: Uplink) -> None:
    """Have Bob on another plugin's bridge."""
    wire = abi.Wire(BOB_IFINDEX, bytes.fromhex(BOB_MAC.replace(":", "")), 55)
    uplink.datapath.tables["pods"].put(packets.raw(uplink.ends.bob), abi.Pod(wire, 2).pack())


@pytest.mark.parametrize("target", ["node", "service"])
def test_to_a_pod_here_with_the_client_s_address(uplink: Uplink, protocol: int, target: str) -> None:
    ends = uplink.ends
    uplink.serve("alice", protocol=protocol)
    to = uplink.node if target == "node" else ends.service
    port = NODE_PORT if target == "node" else SERVICE_PORT
    got = uplink.come(BUILD[protocol](dport=port), destination=to, ttl=64)
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    assert ends_of(got.packet) == (ends.outside, CLIENT_PORT, ends.alice, POD_PORT)
    assert (ttl(got.packet), packets.has_right_checksums(got.raw)) == (63, True)
    answer = (
        packets.ethernet()
        / packets.ip(ends.alice, ends.outside)
        / BUILD[protocol](sport=POD_PORT, dport=CLIENT_PORT, **({"flags": "SA"} if protocol == 6 else {}))
    )
    back = uplink.datapath.from_pod(answer)
    assert (back.outcome, back.ifindex, back.packet.src, back.packet.dst) == (
        Outcome.NETWORK, UPLINK, OUR_MAC, ROUTER_MAC,
    )  # fmt: skip
    assert ends_of(back.packet) == (to, port, ends.outside, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_to_a_process_of_this_node(uplink: Uplink, protocol: int) -> None:
    uplink.serve(uplink.node, 9090, protocol)
    got = uplink.come(BUILD[protocol](dport=NODE_PORT), ttl=1)
    assert (got.outcome, got.retval, got.packet.dst) == (Outcome.STACK, NOTHING_DECIDED, OUR_MAC)
    assert ends_of(got.packet) == (uplink.ends.outside, CLIENT_PORT, uplink.node, 9090)
    assert packets.has_right_checksums(got.raw)
    back = uplink.go(BUILD[protocol](sport=9090, dport=CLIENT_PORT), uplink.ends.outside)
    assert (back.outcome, back.retval, ttl(back.packet)) == (Outcome.STACK, NOTHING_DECIDED, 64)
    assert ends_of(back.packet) == (uplink.node, NODE_PORT, uplink.ends.outside, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_to_a_pod_of_another_plugin(uplink: Uplink, protocol: int) -> None:
    """Through the stack both ways: its filters and its connection tracking see the whole connection."""
    ends, run = uplink.ends, uplink.datapath.run
    beside(uplink)
    uplink.serve("bob", protocol=protocol)
    got = uplink.come(BUILD[protocol](dport=NODE_PORT))
    assert (got.outcome, got.retval) == (Outcome.STACK, NOTHING_DECIDED)
    assert ends_of(got.packet) == (ends.outside, CLIENT_PORT, ends.bob, POD_PORT)
    assert run("to_pod_beside", got.raw, UPLINK).raw == got.raw
    answer = (
        packets.ethernet(BOB_MAC)
        / packets.ip(ends.bob, ends.outside)
        / BUILD[protocol](sport=POD_PORT, dport=CLIENT_PORT, **({"flags": "SA"} if protocol == 6 else {}))
    )
    assert run("from_pod_beside", answer, BOB_IFINDEX).raw == bytes(answer)
    back = run("to_network_beside", answer, BOB_IFINDEX, device=UPLINK)
    assert (back.outcome, back.retval) == (Outcome.STACK, NOTHING_DECIDED)
    assert ends_of(back.packet) == (uplink.node, NODE_PORT, ends.outside, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_errors_about_a_connection_to_a_pod_of_another_plugin(uplink: Uplink) -> None:
    ends, run = uplink.ends, uplink.datapath.run
    beside(uplink)
    uplink.serve("bob")
    question = uplink.come(packets.tcp(dport=NODE_PORT))
    quoted = question.packet[IPv6 if ends.ipv6 else IP]
    error = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.outside) / packets.unreachable(ends, quoted)
    assert run("from_pod_beside", error, BOB_IFINDEX).raw == bytes(error)
    left = run("to_network_beside", error, BOB_IFINDEX, device=UPLINK)
    assert (left.packet[IPv6 if ends.ipv6 else IP].src, packets.has_right_checksums(left.raw)) == (uplink.node, True)
    answer = packets.ip(uplink.node, ends.outside) / packets.tcp("SA", NODE_PORT, CLIENT_PORT)
    came = uplink.come(packets.too_big(ends, answer))
    assert (came.outcome, came.retval) == (Outcome.STACK, NOTHING_DECIDED)
    assert (came.packet[IPv6 if ends.ipv6 else IP].dst, packets.has_right_checksums(came.raw)) == (ends.bob, True)


def test_what_is_forwarded_otherwise_is_left_alone(uplink: Uplink) -> None:
    ends = uplink.ends
    for packet in (packets.tcp("A"), packets.udp(), packets.echo(ends)):
        sent = packets.ethernet() / packets.ip(ends.bob, ends.outside) / packet
        for program in ("to_network", "to_network_beside"):
            assert uplink.datapath.run(program, sent, BOB_IFINDEX, device=UPLINK).raw == bytes(sent)
    assert not uplink.datapath.flows()


def test_no_address_at_all_is_no_node_s(uplink: Uplink, protocol: int) -> None:
    """``services`` has NodePorts at 0.0.0.0 and ::, which a packet may carry, too: RFC 1122 3.2.1.3, RFC 4291 2.5.2."""
    uplink.serve("alice", protocol=protocol)
    nowhere = "::" if uplink.ends.ipv6 else "0.0.0.0"
    got = uplink.come(BUILD[protocol](dport=NODE_PORT), destination=nowhere)
    assert (got.outcome, got.retval) == (Outcome.STACK, NOTHING_DECIDED)
    assert ends_of(got.packet) == (uplink.ends.outside, CLIENT_PORT, nowhere, NODE_PORT)
    sent = packets.ethernet() / packets.ip(uplink.ends.alice, nowhere) / BUILD[protocol](dport=NODE_PORT)
    assert ends_of(uplink.datapath.from_pod(sent).packet)[2:] == (nowhere, NODE_PORT)


@pytest.mark.parametrize("other", ["port", "middle", "udp", "echo", "error"])
def test_what_is_no_service_s_is_the_host_s(uplink: Uplink, other: str) -> None:
    uplink.serve("alice")
    quoted = packets.ip(uplink.node, uplink.ends.outside) / packets.udp()
    packet = {
        "port": packets.tcp(dport=22),
        "middle": packets.tcp("A", dport=NODE_PORT),
        "udp": packets.udp(dport=NODE_PORT),
        "echo": packets.echo(uplink.ends),
        "error": packets.unreachable(uplink.ends, quoted),
    }[other]
    sent = packets.ethernet(ROUTER_MAC, OUR_MAC) / packets.ip(uplink.ends.outside, uplink.node) / packet
    got = uplink.raw(sent)
    assert (got.outcome, got.retval, got.raw) == (Outcome.STACK, NOTHING_DECIDED, bytes(sent))
    assert not uplink.datapath.flows()


def test_without_endpoints_it_is_refused_to_whoever_asked(uplink: Uplink, protocol: int) -> None:
    uplink.serve("", protocol=protocol)
    got = uplink.come(BUILD[protocol](dport=NODE_PORT))
    assert (got.outcome, got.reason, got.ifindex, got.retval) == (
        Outcome.REJECT, DropReason.NO_ENDPOINTS, UPLINK, REDIRECT,
    )  # fmt: skip
    assert (got.packet.src, got.packet.dst) == (OUR_MAC, ROUTER_MAC)
    assert packets.has_right_checksums(got.raw)
    if protocol == 6:
        assert got.packet[TCP].flags == "RA"


def test_a_next_hop_without_a_mac_is_the_kernel_s_to_find(uplink: Uplink) -> None:
    uplink.serve("alice")
    client = UNRESOLVED[uplink.ends.ipv6]
    uplink.come(packets.tcp(dport=NODE_PORT), source=client)
    answer = packets.ethernet() / packets.ip(uplink.ends.alice, client) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    back = uplink.datapath.from_pod(answer)
    assert (back.outcome, back.ifindex, back.retval) == (Outcome.NETWORK, UPLINK, REDIRECT)
    assert ends_of(back.packet) == (uplink.node, NODE_PORT, client, CLIENT_PORT)


def test_a_pod_s_answer_that_the_path_does_not_take_goes_up_as_it_is(uplink: Uplink) -> None:
    """With the node's address as source the stack would drop it, and nobody would learn the path's MTU."""
    ends = uplink.ends
    uplink.serve("alice", protocol=17)
    uplink.come(packets.udp(dport=NODE_PORT))
    big = packets.udp(POD_PORT, CLIENT_PORT, bytes(1600))
    sent = packets.ethernet() / packets.ip(ends.alice, ends.outside) / big
    got = uplink.datapath.from_pod(sent)
    assert (got.outcome, ends_of(got.packet)) == (Outcome.STACK, (ends.alice, POD_PORT, ends.outside, CLIENT_PORT))
    assert packets.has_right_checksums(got.raw)
    assert ends.ipv6 or got.packet[IP].flags == "DF"


@pytest.mark.parametrize("backend", ["alice", "carol"])
def test_a_time_to_live_that_ends_here(uplink: Uplink, protocol: int, backend: str) -> None:
    uplink.serve(backend, protocol=protocol)
    got = uplink.come(BUILD[protocol](dport=NODE_PORT), ttl=1)
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.TIME_EXCEEDED, UPLINK)
    error = got.packet[ICMPv6TimeExceeded] if uplink.ends.ipv6 else got.packet[ICMP]
    assert (error.type, error.code) == ((3, 0) if uplink.ends.ipv6 else (11, 0))
    assert packets.has_right_checksums(got.raw)


def test_a_path_that_does_not_take_the_packet(uplink: Uplink, protocol: int) -> None:
    uplink.serve("carol", protocol=protocol)
    got = uplink.come(BUILD[protocol](dport=NODE_PORT, data=bytes(1600)))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.TOO_BIG)
    if uplink.ends.ipv6:
        assert got.packet[ICMPv6PacketTooBig].mtu == 1500
    else:
        assert (got.packet[ICMP].type, got.packet[ICMP].code, got.packet[ICMP].nexthopmtu) == (3, 4, 1500)
    assert packets.has_right_checksums(got.raw)


@pytest.mark.parametrize("source", ["bob", "node", "nobody"])
def test_an_address_that_can_not_come_from_outside(uplink: Uplink, source: str) -> None:
    uplink.serve("alice")
    nobody = "::1" if uplink.ends.ipv6 else "127.0.0.1"
    address = {"bob": uplink.ends.bob, "node": uplink.node, "nobody": nobody}[source]
    got = uplink.come(packets.tcp(dport=NODE_PORT), source=address)
    expected = Outcome.STACK if source == "nobody" else Outcome.DROP
    assert (got.outcome, got.reason != DropReason.NONE) == (expected, source != "nobody")
    assert not uplink.datapath.flows()


def test_an_error_from_the_pod_is_the_service_s(uplink: Uplink, protocol: int) -> None:
    ends = uplink.ends
    uplink.serve("alice", protocol=protocol)
    heard = uplink.come(BUILD[protocol](dport=NODE_PORT)).packet[IPv6 if ends.ipv6 else IP]
    error = packets.ethernet() / packets.ip(ends.alice, ends.outside) / packets.unreachable(ends, heard)
    got = uplink.datapath.from_pod(error)
    header = got.packet[IPv6 if ends.ipv6 else IP]
    assert (got.outcome, got.ifindex, header.src, header.dst) == (Outcome.NETWORK, UPLINK, uplink.node, ends.outside)
    assert packets.has_right_checksums(got.raw)
    quoted = bytes(got.packet[ICMPv6DestUnreach if ends.ipv6 else ICMP].payload)
    inner = IPv6(quoted) if ends.ipv6 else IP(quoted)
    assert (inner.src, inner.dst, inner.payload.dport) == (ends.outside, uplink.node, NODE_PORT)


def test_an_error_from_outside_reaches_the_pod(uplink: Uplink, protocol: int) -> None:
    """A path narrower than the pod thinks: a router says so to the service's address."""
    ends = uplink.ends
    uplink.serve("alice", protocol=protocol)
    uplink.come(BUILD[protocol](dport=NODE_PORT))
    answer = packets.ip(uplink.node, ends.outside) / BUILD[protocol](sport=NODE_PORT, dport=CLIENT_PORT)
    router = "2001:db8:5::5" if ends.ipv6 else "203.0.113.5"
    got = uplink.come(packets.too_big(ends, answer), source=router, ttl=64)
    header = got.packet[IPv6 if ends.ipv6 else IP]
    assert (got.outcome, got.ifindex, header.src, header.dst) == (Outcome.POD, ALICE_IFINDEX, router, ends.alice)
    assert packets.has_right_checksums(got.raw)


def test_a_backend_that_is_gone_is_refused(uplink: Uplink) -> None:
    uplink.serve("alice")
    uplink.come(packets.tcp(dport=NODE_PORT))
    for key, flow in uplink.datapath.flows().items():
        uplink.datapath.tables["flows"].put(key.pack(), replace(flow, flags=flow.flags | FlowFlag.GONE).pack())
    got = uplink.come(packets.tcp("A", dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.BACKEND_GONE)
    assert not uplink.datapath.flows()


def test_pods_and_the_gateway_s_mac_are_as_before(uplink: Uplink) -> None:
    """What is for a pod itself needs no service."""
    got = uplink.come(packets.tcp(dport=POD_PORT), destination=uplink.ends.alice)
    assert (got.outcome, got.ifindex, got.packet.src) == (Outcome.POD, ALICE_IFINDEX, OUR_MAC)
    assert GATEWAY_MAC != OUR_MAC
