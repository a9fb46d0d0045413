"""from_network, to_pod and to_network: what comes from other nodes, from the host's stack, and what leaves."""

import pytest
from scapy.all import ARP, Ether, ICMPv6ND_NS, IPv6, Raw

from ebpfnet.abi import DropReason, FlowFlag, Hook, Outcome
from tests import packets
from tests.packets import (
    ALICE_IFINDEX,
    ALICE_MAC,
    BOB_IFINDEX,
    CLIENT_PORT,
    GATEWAY_MAC,
    POD_PORT,
    STRANGER_MAC,
    UPLINK_MAC,
    Ends,
)
from tests.prog.loaded import Datapath


def from_wire(source: str, destination: str, **fields: int) -> Ether:
    return packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(source, destination, **fields)


def down_wire(source: str, destination: str) -> Ether:
    return packets.ethernet(GATEWAY_MAC, ALICE_MAC) / packets.ip(source, destination)


@pytest.mark.parametrize("source", ["carol", "outside"])
def test_from_outside_straight_into_the_pod(datapath: Datapath, ends: Ends, source: str) -> None:
    sent = from_wire(getattr(ends, source), ends.alice) / packets.tcp(dport=POD_PORT)
    got = datapath.from_network(sent)
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    assert packets.has_right_checksums(got.raw)
    key = packets.tuple_of(getattr(ends, source), ends.alice, CLIENT_PORT, POD_PORT, 6)
    forward, back = datapath.flow(key), datapath.flow(key.reverse())
    assert forward is not None
    assert back is not None
    assert (forward.from_.ifindex, forward.deliver.ifindex, back.from_.ifindex) == (0, ALICE_IFINDEX, ALICE_IFINDEX)
    assert back.flags == FlowFlag.REPLY


def test_the_answer_leaves_as_it_is(datapath: Datapath, ends: Ends) -> None:
    datapath.from_network(from_wire(ends.outside, ends.alice) / packets.udp(dport=POD_PORT))
    answer = packets.ethernet() / packets.ip(ends.alice, ends.outside) / packets.udp(POD_PORT, CLIENT_PORT)
    got = datapath.from_pod(answer)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(answer))
    assert len(datapath.flows()) == 2


@pytest.mark.parametrize("destination", ["carol", "gateway", "outside"])
def test_what_is_for_no_pod_here_passes(datapath: Datapath, ends: Ends, destination: str) -> None:
    sent = from_wire("fd03::3" if ends.ipv6 else "10.1.3.3", getattr(ends, destination)) / packets.tcp()
    got = datapath.from_network(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))
    assert not datapath.flows()


def test_a_pod_of_this_node_does_not_come_from_outside(datapath: Datapath, ends: Ends) -> None:
    sent = from_wire(ends.bob, ends.alice) / packets.tcp(dport=POD_PORT)
    got = datapath.from_network(sent)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS)
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.udp())
    again = datapath.from_network(from_wire(ends.alice, ends.carol) / packets.udp())
    assert again.reason == DropReason.SPOOFED_ADDRESS


@pytest.mark.parametrize("mac", ["02:de:ad:be:ef:01", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"])
def test_a_frame_for_another_host_is_left_to_the_stack(datapath: Datapath, ends: Ends, mac: str) -> None:
    packet = packets.ip(ends.outside, ends.alice) / packets.udp(dport=POD_PORT)
    sent = packets.ethernet(STRANGER_MAC, mac) / packet
    got = datapath.from_network(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))
    assert not datapath.flows()


NOBODY = ["127.0.0.1", "0.0.0.7", "224.0.0.1", "239.9.9.9", "255.255.255.255", "::1", "::", "ff02::1"]


@pytest.mark.parametrize("source", NOBODY)
def test_an_address_that_no_host_has_as_source(datapath: Datapath, source: str) -> None:
    ends = packets.V6 if ":" in source else packets.V4
    for transport in (packets.udp(dport=POD_PORT), packets.unreachable(ends, packets.ip(ends.alice, source))):
        got = datapath.from_network(from_wire(source, ends.alice) / transport)
        assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS)
        assert datapath.from_network(from_wire(source, ends.gateway) / transport).outcome == Outcome.STACK
    assert not datapath.flows()


def test_what_is_not_ip_passes(datapath: Datapath) -> None:
    assert datapath.from_network(Ether(src=STRANGER_MAC) / ARP(pdst="10.0.0.1")).outcome == Outcome.STACK
    assert datapath.from_network(Ether(src=STRANGER_MAC, type=0x88CC) / Raw(bytes(60))).outcome == Outcome.STACK


def test_unknown_protocols_of_the_host_pass_and_a_pod_s_do_not(datapath: Datapath, ends: Ends) -> None:
    number = {"nh": 47} if ends.ipv6 else {"proto": 47}
    host = from_wire(ends.outside, ends.gateway, **number) / Raw(bytes(40))
    pod = from_wire(ends.outside, ends.alice, **number) / Raw(bytes(40))
    assert datapath.from_network(host).outcome == Outcome.STACK
    assert datapath.from_network(pod).reason == DropReason.UNSUPPORTED_PROTOCOL


def test_a_host_process_reaches_a_pod_and_hears_from_it(datapath: Datapath, ends: Ends) -> None:
    sent = down_wire(ends.gateway, ends.alice) / packets.tcp(dport=POD_PORT)
    got = datapath.to_pod(sent, 0)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))
    answer = packets.ethernet() / packets.ip(ends.alice, ends.gateway) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    back = datapath.from_pod(answer)
    assert (back.outcome, back.raw) == (Outcome.STACK, bytes(answer))


def test_what_the_stack_hands_on_for_a_pod_here_is_left_alone(datapath: Datapath, ends: Ends) -> None:
    sent = down_wire(ends.bob, ends.alice) / packets.tcp(dport=POD_PORT)
    assert datapath.to_pod(sent).reason == DropReason.SPOOFED_ADDRESS, "it did not come in at that pod's wire"
    assert not datapath.flows()
    got = datapath.to_pod(sent, BOB_IFINDEX)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


def test_an_answer_whose_time_to_live_ends_here_is_the_stack_s_as_it_is(datapath: Datapath, ends: Ends) -> None:
    """Its sender must know the packet again in the error."""
    datapath.set_service(ends.service, packets.SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 91)
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    for ttl, outcome in ((0, Outcome.STACK), (1, Outcome.STACK), (2, Outcome.POD)):
        sent = from_wire(ends.carol, ends.alice, ttl=ttl) / packets.udp(POD_PORT, CLIENT_PORT)
        got = datapath.from_network(sent)
        assert (got.outcome, got.raw == bytes(sent)) == (outcome, outcome == Outcome.STACK)


def test_an_answer_that_came_through_the_stack_is_translated(datapath: Datapath, ends: Ends) -> None:
    datapath.set_service(ends.service, packets.SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 91)
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    got = datapath.to_pod(down_wire(ends.carol, ends.alice) / packets.udp(POD_PORT, CLIENT_PORT))
    expected = down_wire(ends.service, ends.alice) / packets.udp(packets.SERVICE_PORT, CLIENT_PORT)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(expected))


def test_the_router_may_speak_to_its_pod(datapath: Datapath) -> None:
    query = IPv6(src="fe80::1", dst="ff02::1:ff00:10", hlim=255) / ICMPv6ND_NS(tgt=packets.V6.alice)
    assert datapath.to_pod(packets.ethernet(GATEWAY_MAC) / query).outcome == Outcome.STACK
    arp = Ether(src=GATEWAY_MAC, dst=ALICE_MAC) / ARP(op=2, psrc=packets.V4.gateway)
    assert datapath.to_pod(arp).outcome == Outcome.STACK


def test_what_leaves_is_left_alone(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.tcp()
    got = datapath.to_network(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


@pytest.mark.parametrize("hook", Hook)
def test_ethernet_alone_is_truncated_or_passes(datapath: Datapath, hook: Hook) -> None:
    got = datapath.run(hook.name.lower(), bytes(packets.ethernet()) + b"")
    passes = hook != Hook.FROM_POD
    assert got.outcome in ({Outcome.STACK, Outcome.DROP} if passes else {Outcome.DROP})
