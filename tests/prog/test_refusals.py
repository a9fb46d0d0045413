"""Refusals of packets that are not plain: IP options, extension headers, fragments."""

import pytest
from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    ICMPv6DestUnreach,
    IPOption_NOP,
    IPOption_RR,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Packet,
    PadN,
    Raw,
)

from ebpfnet.abi import DropReason, Outcome
from tests import packets
from tests.packets import ALICE_MAC, CLIENT_PORT, SERVICE_PORT, V4, V6
from tests.prog.loaded import Datapath

RECORD_ROUTE = IPOption_RR(length=7, pointer=4, routers=["0.0.0.0"])
HEADERS: dict[str, Packet] = {
    "v4": IP(src=V4.alice, dst=V4.empty),
    "v4 option": IP(src=V4.alice, dst=V4.empty, options=[IPOption_NOP(), RECORD_ROUTE]),
    "v4 all options": IP(src=V4.alice, dst=V4.empty, options=[IPOption_NOP()] * 40),
    "v6": IPv6(src=V6.alice, dst=V6.empty),
    "v6 destination": IPv6(src=V6.alice, dst=V6.empty) / IPv6ExtHdrDestOpt(),
    "v6 three": IPv6(src=V6.alice, dst=V6.empty)
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))])
    / IPv6ExtHdrFragment(id=1),
}
TOO_LONG = IPv6(src=V6.alice, dst=V6.empty) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(44))])


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("data", [b"", b"x" * 999], ids=["empty", "long"])
def test_a_datagram(datapath: Datapath, header: str, data: bytes) -> None:
    sent = bytes(packets.ethernet() / HEADERS[header] / packets.udp(data=data))
    got = datapath.from_pod(sent)
    assert (got.outcome, got.reason, got.packet.dst) == (Outcome.REJECT, DropReason.NO_ENDPOINTS, ALICE_MAC)
    quoted = bytes((got.packet[ICMPv6DestUnreach] if IPv6 in got.packet else got.packet[ICMP]).payload)
    assert quoted == sent[14 : len(sent) - len(data)]
    assert packets.has_right_checksums(got.raw)


@pytest.mark.parametrize("header", HEADERS)
def test_a_connection(datapath: Datapath, header: str) -> None:
    got = datapath.from_pod(packets.ethernet() / HEADERS[header] / packets.tcp(data=b"x" * 999))
    assert (got.outcome, got.reason, got.packet.dst) == (Outcome.REJECT, DropReason.NO_ENDPOINTS, ALICE_MAC)
    reset = got.packet[TCP]
    assert (reset.sport, reset.dport, reset.flags, reset.ack) == (SERVICE_PORT, CLIENT_PORT, "RA", 2000)
    assert packets.has_right_checksums(got.raw)
    assert len(reset) == reset.dataofs * 4
    assert not any(bytes(reset)[20:])


@pytest.mark.parametrize("transport", [packets.tcp(), packets.udp()], ids=["tcp", "udp"])
def test_more_extension_headers_than_an_answer_has_room_for(datapath: Datapath, transport: Packet) -> None:
    got = datapath.from_pod(packets.ethernet() / TOO_LONG / transport)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_ENDPOINTS)


def test_the_first_fragment_s_quote_has_the_ports(datapath: Datapath) -> None:
    part = bytes(UDP(sport=CLIENT_PORT, dport=SERVICE_PORT, len=2008) / Raw(bytes(1000)))
    header = IPv6(src=V6.alice, dst=V6.empty) / IPv6ExtHdrFragment(nh=17, id=5, m=1)
    sent = bytes(packets.ethernet() / header / Raw(part))
    got = datapath.from_pod(sent)
    assert got.outcome == Outcome.REJECT
    assert bytes(got.packet[ICMPv6DestUnreach].payload) == sent[14 : 14 + 40 + 8 + 8]
    assert packets.has_right_checksums(got.raw)
