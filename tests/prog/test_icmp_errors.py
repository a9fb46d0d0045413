"""ICMP errors find the connection that they are about, and speak to each side of the addresses that it knows."""

from collections.abc import Callable

import pytest
from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    Ether,
    ICMPerror,
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPerror,
    IPerror6,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Packet,
    PadN,
    Raw,
    TCPerror,
    UDPerror,
)

from ebpfnet.abi import DropReason, Outcome
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
    STRANGER_MAC,
    UPLINK_MAC,
    Ends,
)
from tests.prog.loaded import Datapath, Result

ERRORS: dict[str, Callable[[Ends, Packet], Packet]] = {
    "unreachable": packets.unreachable,
    "too big": packets.too_big,
    "time exceeded": packets.time_exceeded,
}
BUILDERS: dict[str, Callable[..., Packet]] = {"tcp": packets.tcp, "udp": packets.udp}
ROUTER = {False: "10.1.9.9", True: "fd09::9"}


def outer(got: Result) -> tuple[str, str]:
    header = got.packet[IPv6] if IPv6 in got.packet else got.packet[IP]
    return header.src, header.dst


def quoted(got: Result) -> Packet:
    """Return what an error quotes, as a packet of its own."""
    for layer in (ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded):
        if layer in got.packet:
            return IPv6(bytes(got.packet[layer].payload))
    return IP(bytes(got.packet[ICMP].payload))


def quoted_ends(got: Result) -> tuple[str, str, int, int]:
    inner = quoted(got)
    transport = inner.payload
    return inner.src, inner.dst, transport.sport, transport.dport


def is_right(got: Result) -> bool:
    """Check the outer checksums, and those of the quoted packet, which is whole in these tests."""
    inner = quoted(got)
    return packets.has_right_checksums(got.raw) and bytes(packets.strip_checksums(inner)) == bytes(inner)


@pytest.fixture
def only_bob(datapath: Datapath, ends: Ends) -> Datapath:
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.bob, POD_PORT)], 50 + protocol)
    return datapath


@pytest.fixture
def only_carol(datapath: Datapath, ends: Ends) -> Datapath:
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.carol, POD_PORT)], 70 + protocol)
    return datapath


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("protocol", BUILDERS)
def test_from_a_backend_here(only_bob: Datapath, ends: Ends, protocol: str, error: str) -> None:
    there = only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / BUILDERS[protocol]())
    about = Raw(there.raw[14:])
    sent = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / ERRORS[error](ends, about)
    got = only_bob.from_pod(sent, BOB_IFINDEX)
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    assert outer(got) == (ends.service, ends.alice)
    assert quoted_ends(got) == (ends.alice, ends.service, CLIENT_PORT, SERVICE_PORT)
    assert is_right(got)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("protocol", BUILDERS)
def test_from_a_router_on_the_way(only_carol: Datapath, ends: Ends, protocol: str, error: str) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / BUILDERS[protocol]())
    about = Raw(there.raw[14:])
    router = ROUTER[ends.ipv6]
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(router, ends.alice)
    got = only_carol.from_network(header / ERRORS[error](ends, about))
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    assert outer(got) == (router, ends.alice)
    assert quoted_ends(got) == (ends.alice, ends.service, CLIENT_PORT, SERVICE_PORT)
    assert is_right(got)


@pytest.mark.parametrize("protocol", BUILDERS)
def test_from_the_host_s_own_stack(only_carol: Datapath, ends: Ends, protocol: str) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / BUILDERS[protocol]())
    error = packets.too_big(ends, Raw(there.raw[14:]))
    sent = packets.ethernet(GATEWAY_MAC, ALICE_MAC) / packets.ip(ends.gateway, ends.alice) / error
    got = only_carol.to_pod(sent)
    assert got.outcome == Outcome.STACK
    assert outer(got) == (ends.gateway, ends.alice)
    assert quoted_ends(got) == (ends.alice, ends.service, CLIENT_PORT, SERVICE_PORT)
    assert is_right(got)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("protocol", BUILDERS)
def test_from_the_client_about_an_answer(only_bob: Datapath, ends: Ends, protocol: str, error: str) -> None:
    build = BUILDERS[protocol]
    only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / build())
    answer = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / build(sport=POD_PORT, dport=CLIENT_PORT)
    heard = only_bob.from_pod(answer, BOB_IFINDEX)
    complaint = ERRORS[error](ends, Raw(heard.raw[14:]))
    got = only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / complaint)
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, BOB_IFINDEX, BOB_MAC)
    assert outer(got) == (ends.alice, ends.bob)
    assert quoted_ends(got) == (ends.bob, ends.alice, POD_PORT, CLIENT_PORT)
    assert is_right(got)


@pytest.mark.parametrize("protocol", BUILDERS)
def test_about_oneself_through_a_service(datapath: Datapath, ends: Ends, protocol: str) -> None:
    there = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.lonely) / BUILDERS[protocol]())
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.lonely) / error)
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert outer(got) == (ends.lonely, ends.alice)
    assert quoted_ends(got) == (ends.alice, ends.lonely, CLIENT_PORT, SERVICE_PORT)
    assert is_right(got)


@pytest.mark.parametrize("transport", [packets.udp(dport=POD_PORT), packets.sctp()], ids=["udp", "sctp"])
def test_without_nat_it_passes_unchanged(datapath: Datapath, ends: Ends, transport: Packet) -> None:
    there = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.carol) / transport)
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    sent = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice) / error
    got = datapath.from_network(sent)
    assert (got.outcome, outer(got)) == (Outcome.POD, (ends.carol, ends.alice))
    start = 14 + (40 if ends.ipv6 else 20)
    assert got.raw[start:] == bytes(sent)[start:]


def test_about_an_echo(datapath: Datapath, ends: Ends) -> None:
    there = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.echo(ends))
    error = packets.time_exceeded(ends, Raw(there.raw[14:]))
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ROUTER[ends.ipv6], ends.alice)
    got = datapath.from_network(header / error)
    assert got.outcome == Outcome.POD
    assert packets.has_right_checksums(got.raw)
    assert (ICMPv6EchoRequest in quoted(got)) if ends.ipv6 else (ICMPerror in got.packet)


def test_a_short_quote_is_enough(only_carol: Datapath, ends: Ends) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp(data=b"x" * 99))
    about = Raw(there.raw[14 : 14 + (40 if ends.ipv6 else 20) + 8])
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ROUTER[ends.ipv6], ends.alice)
    got = only_carol.from_network(header / packets.too_big(ends, about))
    assert got.outcome == Outcome.POD
    assert packets.has_right_checksums(got.raw)
    inner = got.raw[-(28 if not ends.ipv6 else 48) :]
    assert int.from_bytes(inner[-6:-4], "big") == SERVICE_PORT
    assert (IPerror6 if ends.ipv6 else IPerror) in got.packet
    assert (TCPerror in got.packet) or (TCP in got.packet)


def test_an_error_keeps_its_mtu(only_carol: Datapath, ends: Ends) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ROUTER[ends.ipv6], ends.alice)
    got = only_carol.from_network(header / packets.too_big(ends, Raw(there.raw[14:]), 1300))
    mtu = got.packet[ICMPv6PacketTooBig].mtu if ends.ipv6 else got.packet[ICMP].nexthopmtu
    assert mtu == 1300
    assert (UDPerror in got.packet) or (UDP in got.packet)


def test_about_no_connection_of_ours(datapath: Datapath, ends: Ends) -> None:
    about = packets.ip(ends.alice, ends.carol) / packets.udp(dport=9)
    error = packets.unreachable(ends, about)
    got = datapath.from_network(packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice) / error)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.FLOW_UNKNOWN)
    about = packets.ip(ends.bob, ends.alice) / packets.udp(dport=9)
    error = packets.unreachable(ends, about)
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob) / error)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.FLOW_UNKNOWN)


def test_about_somebody_else_s_connection(only_carol: Datapath, ends: Ends) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    got = only_carol.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / error, BOB_IFINDEX)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS)


def test_with_another_s_source_address(only_bob: Datapath, ends: Ends) -> None:
    there = only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    got = only_bob.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.outside, ends.alice) / error, BOB_IFINDEX)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SPOOFED_ADDRESS)


@pytest.mark.parametrize("receiver", ["gateway", "bob"])
@pytest.mark.parametrize("service", [False, True], ids=["direct", "service"])
def test_to_another_than_the_sender_of_what_it_quotes(
    only_carol: Datapath, ends: Ends, receiver: str, service: bool
) -> None:
    to = ends.service if service else ends.carol
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, to) / packets.udp())
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, getattr(ends, receiver))
    got = only_carol.from_network(header / error)
    expected = (Outcome.STACK, DropReason.NONE) if receiver == "gateway" else (Outcome.DROP, DropReason.FLOW_UNKNOWN)
    assert (got.outcome, got.reason, got.raw) == (*expected, bytes(header / error))


def test_a_forged_one_is_dropped_as_it_came(only_bob: Datapath, ends: Ends) -> None:
    """From the network, about what a service said to a pod here: the far end of that is here too."""
    only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    quoted_answer = packets.ip(ends.service, ends.alice) / packets.udp(SERVICE_PORT, CLIENT_PORT)
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.outside, ends.service)
    sent = header / packets.unreachable(ends, quoted_answer)
    got = only_bob.from_network(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


CHAINS = {
    "destination": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))]),
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "first fragment": IPv6ExtHdrFragment(id=1, offset=0, m=1),
    "four": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=1) / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("protocol", BUILDERS)
@pytest.mark.parametrize("chain", CHAINS)
def test_about_a_packet_with_extension_headers(datapath: Datapath, chain: str, protocol: str) -> None:
    ends = packets.V6
    for number in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, number, [(ends.carol, POD_PORT)], 70 + number)
    sent = packets.ip(ends.alice, ends.service) / CHAINS[chain] / BUILDERS[protocol]()
    there = datapath.from_pod(packets.ethernet() / sent)
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ROUTER[True], ends.alice)
    got = datapath.from_network(header / packets.too_big(ends, Raw(there.raw[14:])))
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert packets.has_right_checksums(got.raw)
    assert got.raw[14 + 48 :] == bytes(sent)


def test_about_a_packet_with_more_extension_headers(datapath: Datapath) -> None:
    ends = packets.V6
    there = packets.ip(ends.alice, ends.carol)
    for _ in range(5):
        there /= IPv6ExtHdrDestOpt()
    datapath.from_pod(packets.ethernet() / there / packets.udp())
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ROUTER[True], ends.alice)
    got = datapath.from_network(header / packets.too_big(ends, there / packets.udp()))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.FLOW_UNKNOWN)


def test_about_a_datagram_without_checksum(only_carol: Datapath) -> None:
    ends = packets.V4
    datagram = packets.udp()
    datagram[UDP].chksum = 0
    only_carol.set_service(ends.service, SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 87)
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / datagram)
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice)
    got = only_carol.from_network(header / packets.unreachable(ends, Raw(there.raw[14:])))
    assert (got.outcome, quoted(got)[UDP].chksum) == (Outcome.POD, 0)
    assert packets.has_right_checksums(got.raw)


def test_an_error_about_an_error_s_flow_opens_none(only_bob: Datapath, ends: Ends) -> None:
    there = only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp())
    before = only_bob.flows()
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    only_bob.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / error, BOB_IFINDEX)
    assert only_bob.flows().keys() == before.keys()
    assert Ether(there.raw).dst == BOB_MAC
