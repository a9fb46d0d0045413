"""from_pod: between pods, without a service."""

import pytest
from scapy.all import ARP, IP, Ether, ICMPv6ND_NS, IPv6

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, FlowState, Hook, Outcome
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, GATEWAY_MAC, POD_PORT, STRANGER_MAC, Ends
from tests.prog.loaded import Datapath

TRANSPORTS = {
    "tcp": packets.tcp(dport=POD_PORT),
    "udp": packets.udp(dport=POD_PORT),
    "sctp": packets.sctp(),
}


TC_ACT_UNSPEC = 2**32 - 1
"""Nothing decided: other tools' programs at the same hook run too."""


def hops(packet: Ether) -> int:
    return int(packet[IPv6].hlim if IPv6 in packet else packet[IP].ttl)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_to_a_pod_here_goes_straight_in(datapath: Datapath, ends: Ends, transport: str) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.bob, ttl=64) / TRANSPORTS[transport]
    got = datapath.from_pod(sent)
    assert (got.outcome, got.ifindex, got.retval) == (Outcome.POD, BOB_IFINDEX, 7)
    assert (got.packet.dst, got.packet.src, hops(got.packet)) == (BOB_MAC, GATEWAY_MAC, 63)
    assert packets.has_right_checksums(got.raw)
    expected = packets.ethernet(GATEWAY_MAC, BOB_MAC) / packets.ip(ends.alice, ends.bob, ttl=63) / TRANSPORTS[transport]
    assert got.raw == bytes(expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_to_another_node_goes_up_the_stack_unchanged(datapath: Datapath, ends: Ends, transport: str) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / TRANSPORTS[transport]
    got = datapath.from_pod(sent)
    assert (got.outcome, got.retval, got.raw) == (Outcome.STACK, TC_ACT_UNSPEC, bytes(sent))


def test_both_directions_are_remembered(datapath: Datapath, ends: Ends) -> None:
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp(dport=POD_PORT))
    key = packets.tuple_of(ends.alice, ends.bob, CLIENT_PORT, POD_PORT, 6)
    forward, back = datapath.flow(key), datapath.flow(key.reverse())
    assert forward is not None
    assert back is not None
    assert (forward.to, back.to) == (key, key.reverse())
    assert (forward.from_, forward.deliver) == (back.deliver, back.from_)
    assert (forward.deliver.ifindex, forward.from_.ifindex) == (BOB_IFINDEX, ALICE_IFINDEX)
    assert (forward.flags, back.flags, forward.service) == (0, FlowFlag.REPLY, 0)
    assert forward.state == back.state == FlowState.NEW
    assert len(datapath.flows()) == 2


def test_an_answer_establishes(datapath: Datapath, ends: Ends) -> None:
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp(dport=POD_PORT))
    answer = packets.tcp("SA", POD_PORT, CLIENT_PORT)
    sent = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / answer
    got = datapath.from_pod(sent, BOB_IFINDEX)
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert {flow.state for flow in datapath.flows().values()} == {FlowState.ESTABLISHED}


def test_echo_and_its_answer(datapath: Datapath, ends: Ends) -> None:
    asked = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.echo(ends))
    answer = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / packets.echo(ends, answer=True)
    answered = datapath.from_pod(answer, BOB_IFINDEX)
    assert (asked.outcome, answered.outcome) == (Outcome.POD, Outcome.POD)
    assert packets.has_right_checksums(asked.raw)
    assert packets.has_right_checksums(answered.raw)
    assert len(datapath.flows()) == 2


def test_a_time_to_live_that_ends_is_the_stack_s(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.bob, ttl=1) / packets.tcp(dport=POD_PORT)
    got = datapath.from_pod(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


def test_a_time_to_live_of_two_is_enough(datapath: Datapath, ends: Ends) -> None:
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob, ttl=2) / packets.tcp(dport=POD_PORT))
    assert (got.outcome, hops(got.packet)) == (Outcome.POD, 1)


@pytest.mark.parametrize("source", ["bob", "carol", "outside", "gateway"])
def test_another_s_address_is_dropped(datapath: Datapath, ends: Ends, source: str) -> None:
    before = datapath.drops(Hook.FROM_POD, DropReason.SPOOFED_ADDRESS)
    sent = packets.ethernet() / packets.ip(getattr(ends, source), ends.carol) / packets.udp()
    got = datapath.from_pod(sent)
    assert (got.outcome, got.reason, got.retval) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS, 2)
    assert datapath.drops(Hook.FROM_POD, DropReason.SPOOFED_ADDRESS) == before + 1
    assert not datapath.flows()


def test_another_s_mac_is_dropped(datapath: Datapath, ends: Ends) -> None:
    got = datapath.from_pod(packets.ethernet(STRANGER_MAC) / packets.ip(ends.alice, ends.bob) / packets.udp())
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_MAC)
    assert not datapath.flows()


def test_spoofing_into_a_known_flow_is_dropped(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.udp(dport=POD_PORT)
    assert datapath.from_pod(sent).outcome == Outcome.STACK
    assert datapath.from_pod(sent, BOB_IFINDEX).reason == DropReason.SPOOFED_ADDRESS
    assert datapath.from_pod(packets.ethernet(STRANGER_MAC) / sent.payload).reason == DropReason.SPOOFED_MAC


def test_a_drop_is_sampled(datapath: Datapath, ends: Ends) -> None:
    datapath.from_pod(packets.ethernet() / packets.ip(ends.bob, ends.carol) / packets.udp(dport=POD_PORT))
    samples = [abi.DropSample.unpack(value) for _, value in datapath.tables["drop_samples"].items()]
    last = max(samples, key=lambda sample: sample.sequence)
    assert last.tuple == packets.tuple_of(ends.bob, ends.carol, CLIENT_PORT, POD_PORT, 17)
    assert (last.hook, last.reason) == (Hook.FROM_POD, DropReason.SPOOFED_ADDRESS)


def arp(source_mac: str = packets.ALICE_MAC, address: str = packets.V4.alice, inner: str = packets.ALICE_MAC) -> Ether:
    query = ARP(op=1, hwsrc=inner, psrc=address, pdst=packets.V4.gateway)
    return Ether(src=source_mac, dst="ff:ff:ff:ff:ff:ff") / query


def test_arp_for_the_gateway_passes(datapath: Datapath) -> None:
    assert datapath.from_pod(arp()).outcome == Outcome.STACK


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (arp(address=packets.V4.bob), DropReason.SPOOFED_ADDRESS),
        (arp(source_mac=STRANGER_MAC), DropReason.SPOOFED_MAC),
        (arp(inner=STRANGER_MAC), DropReason.SPOOFED_MAC),
    ],
    ids=["address", "frame", "inside"],
)
def test_arp_for_another_is_dropped(datapath: Datapath, packet: Ether, reason: DropReason) -> None:
    got = datapath.from_pod(packet)
    assert (got.outcome, got.reason) == (Outcome.DROP, reason)


@pytest.mark.parametrize("source", ["fe80::a", "::", packets.V6.alice])
def test_neighbour_discovery_passes(datapath: Datapath, source: str) -> None:
    sent = packets.ethernet() / IPv6(src=source, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=packets.V6.gateway)
    got = datapath.from_pod(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


def test_neighbour_discovery_with_another_s_address_is_dropped(datapath: Datapath) -> None:
    query = IPv6(src=packets.V6.bob, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=packets.V6.gateway)
    assert datapath.from_pod(packets.ethernet() / query).reason == DropReason.SPOOFED_ADDRESS
