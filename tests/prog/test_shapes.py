"""Packets of every shape: fragments, options, extension headers, cut off, contradicting themselves, unsupported."""

import struct

import pytest
from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    Ether,
    ICMPv6EchoRequest,
    IPOption_NOP,
    IPOption_RR,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    PadN,
    Raw,
    fragment,
    fragment6,
)

from ebpfnet.abi import DropReason, Outcome
from tests import packets
from tests.packets import (
    ALICE_IFINDEX,
    BOB_IFINDEX,
    CLIENT_PORT,
    POD_PORT,
    SERVICE_PORT,
    STRANGER_MAC,
    UPLINK_MAC,
    V4,
    V6,
    Ends,
)
from tests.prog.loaded import Datapath, Result

CUT = {DropReason.TRUNCATED, DropReason.MALFORMED}
SHORTEST = {False: 14 + 20, True: 14 + 40}  # the kernel runs nothing shorter (net/bpf/test_run.c)


def pieces(ends: Ends, destination: str, data: bytes) -> list[bytes]:
    """Return a datagram of Alice's in fragments of at most about 600 bytes."""
    if not ends.ipv6:
        whole = packets.ip(ends.alice, destination, id=4711) / packets.udp(data=data)
        cut = fragment(IP(bytes(whole)), 600)
    else:
        header = packets.ip(ends.alice, destination) / IPv6ExtHdrFragment(id=4711)
        cut = fragment6(header / packets.udp(data=data), 640)
    return [bytes(packets.ethernet() / piece) for piece in cut]


def join(ends: Ends, raws: list[bytes]) -> bytes:
    """Return the IP payload that the fragments carry together."""
    skip = 14 + 40 + 8 if ends.ipv6 else 14 + 20
    return b"".join(raw[skip:] for raw in raws)


def test_fragments_follow_the_first(datapath: Datapath, ends: Ends) -> None:
    datapath.set_service(ends.service, SERVICE_PORT, 17, [(ends.bob, POD_PORT)], 61)
    data = bytes(range(256)) * 7
    sent = pieces(ends, ends.service, data)
    assert len(sent) > 2
    got = [datapath.from_pod(piece) for piece in sent]
    assert {(result.outcome, result.ifindex) for result in got} == {(Outcome.POD, BOB_IFINDEX)}
    assert {(result.packet[IPv6] if ends.ipv6 else result.packet[IP]).dst for result in got} == {ends.bob}
    whole = UDP(join(ends, [result.raw for result in got]))
    assert (whole.sport, whole.dport, bytes(whole.payload)) == (CLIENT_PORT, POD_PORT, data)
    again = packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.udp(dport=POD_PORT, data=data)
    assert whole.chksum == Ether(bytes(again))[UDP].chksum
    if not ends.ipv6:
        assert all(IP(result.raw[14:34]).chksum == IP(bytes(strip(result.packet)[IP]))[IP].chksum for result in got)


def strip(packet: Packet) -> Packet:
    copy = packet.copy()
    del copy[IP].chksum
    return copy


def test_a_later_fragment_alone_is_dropped(datapath: Datapath, ends: Ends) -> None:
    got = datapath.from_pod(pieces(ends, ends.bob, bytes(2000))[1])
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.FRAGMENT_UNKNOWN)


def test_fragments_come_back_translated(datapath: Datapath, ends: Ends) -> None:
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.udp())
    answer = packets.udp(POD_PORT, CLIENT_PORT, bytes(1500))
    if ends.ipv6:
        header = packets.ip(ends.alice, ends.lonely) / IPv6ExtHdrFragment(id=9)
        cut = fragment6(header / answer, 900)
    else:
        cut = fragment(IP(bytes(packets.ip(ends.alice, ends.lonely, id=9) / answer)), 800)
    got = [datapath.from_pod(packets.ethernet() / piece) for piece in cut]
    assert {result.outcome for result in got} == {Outcome.POD}
    assert UDP(join(ends, [result.raw for result in got])).sport == SERVICE_PORT


def test_a_refusal_answers_the_first_fragment_only(datapath: Datapath, ends: Ends) -> None:
    got = [datapath.from_pod(piece) for piece in pieces(ends, ends.empty, bytes(2000))]
    assert got[0].reason == DropReason.NO_ENDPOINTS
    assert {result.outcome for result in got[1:]} == {Outcome.DROP}


@pytest.mark.parametrize("protocol", [6, 17])
def test_fragments_with_options_follow_the_first(datapath: Datapath, protocol: int) -> None:
    """After the fragment header come destination options: later fragments say nothing of the protocol behind."""
    datapath.set_service(V6.service, SERVICE_PORT, protocol, [(V6.bob, POD_PORT)], 61)
    transport = packets.udp(data=bytes(1000)) if protocol == 17 else packets.tcp(data=bytes(1000))
    options = IPv6ExtHdrDestOpt(nh=protocol, options=[PadN(optdata=bytes(4))])
    whole = bytes(packets.ip(V6.alice, V6.service) / options / transport)[40:]
    header = packets.ethernet() / packets.ip(V6.alice, V6.service)
    for at in (0, 600):
        part = IPv6ExtHdrFragment(nh=60, id=5, m=at == 0, offset=at // 8) / Raw(whole[at : at + 600])
        got = datapath.from_pod(header / part)
        assert (got.outcome, got.ifindex, got.packet[IPv6].dst) == (Outcome.POD, BOB_IFINDEX, V6.bob)
    assert len(datapath.flows()) == 2


def complaint_about(there: Datapath, ends: Ends, quoted: bytes) -> Result:
    """Let a router on the way say that a packet was too big, as far as RFC 4443 and RFC 1812 let it quote."""
    router = "fd09::9" if ends.ipv6 else "10.1.9.9"
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(router, ends.alice)
    return there.from_network(header / packets.too_big(ends, Raw(quoted[14:])))


def test_an_error_about_a_first_fragment_finds_its_connection(datapath: Datapath, ends: Ends) -> None:
    datapath.set_service(ends.service, SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 63)
    first, *_ = [datapath.from_pod(piece) for piece in pieces(ends, ends.service, bytes(2000))]
    got = complaint_about(datapath, ends, first.raw)
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert packets.has_right_checksums(got.raw)
    inner = (IPv6 if ends.ipv6 else IP)(got.raw[14 + (48 if ends.ipv6 else 28) :])
    ports = bytes(inner)[48 if ends.ipv6 else 20 :][:4]
    assert (inner.src, inner.dst, ports) == (ends.alice, ends.service, struct.pack("!HH", CLIENT_PORT, SERVICE_PORT))


def test_an_error_about_a_later_fragment_names_no_connection(datapath: Datapath, ends: Ends) -> None:
    datapath.set_service(ends.service, SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 63)
    _, later, *_ = [datapath.from_pod(piece) for piece in pieces(ends, ends.service, bytes(2000))]
    got = complaint_about(datapath, ends, later.raw)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.FLOW_UNKNOWN)


OPTIONS = [IPOption_NOP(), IPOption_RR(length=7, pointer=4, routers=["0.0.0.0"])]


@pytest.mark.parametrize("transport", [packets.tcp(), packets.udp(), packets.echo(V4)], ids=["tcp", "udp", "echo"])
def test_ip_options_are_skipped(datapath: Datapath, transport: Packet) -> None:
    datapath.set_service(V4.service, SERVICE_PORT, 6, [(V4.bob, POD_PORT)], 62)
    datapath.set_service(V4.service, SERVICE_PORT, 17, [(V4.bob, POD_PORT)], 63)
    destination = V4.bob if ICMP in transport else V4.service
    got = datapath.from_pod(packets.ethernet() / IP(src=V4.alice, dst=destination, options=OPTIONS) / transport)
    assert (got.outcome, got.packet[IP].dst, got.packet[IP].ihl) == (Outcome.POD, V4.bob, 7)
    assert packets.has_right_checksums(got.raw)


CHAINS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]),
    "destination": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))]),
    "both": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(100))]),
    "atomic fragment": IPv6ExtHdrFragment(id=1, offset=0, m=0),
    "all": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=1) / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("transport", [packets.tcp(), packets.udp(), packets.echo(V6)], ids=["tcp", "udp", "echo"])
@pytest.mark.parametrize("chain", CHAINS)
def test_extension_headers_are_skipped(datapath: Datapath, chain: str, transport: Packet) -> None:
    datapath.set_service(V6.service, SERVICE_PORT, 6, [(V6.bob, POD_PORT)], 64)
    datapath.set_service(V6.service, SERVICE_PORT, 17, [(V6.bob, POD_PORT)], 65)
    destination = V6.bob if ICMPv6EchoRequest in transport else V6.service
    got = datapath.from_pod(packets.ethernet() / IPv6(src=V6.alice, dst=destination) / CHAINS[chain] / transport)
    assert (got.outcome, got.packet[IPv6].dst) == (Outcome.POD, V6.bob)
    assert packets.has_right_checksums(got.raw)


def test_too_many_extension_headers(datapath: Datapath) -> None:
    chain: Packet = IPv6(src=V6.alice, dst=V6.bob)
    for _ in range(12):
        chain /= IPv6ExtHdrDestOpt()
    got = datapath.from_pod(packets.ethernet() / chain / packets.tcp())
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_EXTENSION)


def test_a_routing_header_is_refused(datapath: Datapath) -> None:
    chain = IPv6(src=V6.alice, dst=V6.bob) / IPv6ExtHdrRouting(addresses=[V6.carol])
    got = datapath.from_pod(packets.ethernet() / chain / packets.tcp())
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_EXTENSION)


def valid(ends: Ends) -> dict[str, Packet]:
    """Return packets that are right, of every kind that the parsers know."""
    header = packets.ethernet() / packets.ip(ends.alice, ends.service)
    direct = packets.ethernet() / packets.ip(ends.alice, ends.bob)
    error = packets.unreachable(ends, packets.ip(ends.bob, ends.alice) / packets.udp(POD_PORT, CLIENT_PORT))
    found = {
        "tcp": header / packets.tcp(),
        "tcp data": header / packets.tcp("PA", data=b"0123456789"),
        "udp": header / packets.udp(),
        "sctp": direct / packets.sctp(),
        "echo": direct / packets.echo(ends),
        "error": direct / error,
    }
    if ends.ipv6:
        for name, chain in CHAINS.items():
            found[f"tcp after {name}"] = packets.ethernet() / IPv6(src=V6.alice, dst=V6.service) / chain / packets.tcp()
    else:
        options = IP(src=V4.alice, dst=V4.service, options=OPTIONS)
        found["tcp after options"] = packets.ethernet() / options / packets.tcp()
    return found


@pytest.mark.parametrize("hook", ["from_pod", "to_pod", "from_network"])
@pytest.mark.parametrize("kind", sorted({*valid(V4), *valid(V6)}))
def test_cut_at_every_length(datapath: Datapath, ends: Ends, kind: str, hook: str) -> None:
    packet = valid(ends).get(kind)
    if packet is None:
        return  # this family has no such thing
    whole = bytes(packet)
    if hook != "from_pod":
        whole = bytes(packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.turn(Ether(whole), ends))
    for length in range(SHORTEST[ends.ipv6], len(whole)):
        got = datapath.run(hook, whole[:length])
        if hook == "from_network" and got.outcome == Outcome.STACK:  # no destination that could be a pod's
            assert length < 14 + (40 if ends.ipv6 else 20), length
            continue
        assert (got.outcome, got.reason in CUT) == (Outcome.DROP, True), (length, got)
        assert got.raw == whole[:length]
    assert not datapath.flows()


def broken(ends: Ends) -> dict[str, bytes]:
    """Return packets whose headers contradict themselves."""
    tcp = bytes(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp())
    udp = bytes(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.udp())
    l4 = 54 if ends.ipv6 else 34

    def put(raw: bytes, at: int, *octets: int) -> bytes:
        return raw[:at] + bytes(octets) + raw[at + len(octets) :]

    found = {
        "tcp header of 16 bytes": put(tcp, l4 + 12, 0x40),
        "tcp header beyond the end": put(tcp, l4 + 12, 0xF0),
        "udp length below its header": put(udp, l4 + 4, 0, 7),
        "udp length beyond the end": put(udp, l4 + 4, 0, 200),
        "version": put(tcp, 14, 0x45 if ends.ipv6 else 0x65),
        "length beyond the end": put(tcp, 18 if ends.ipv6 else 16, 1, 0),
    }
    if not ends.ipv6:
        found |= {
            "header of 16 bytes": put(tcp, 14, 0x44),
            "header beyond the length": put(tcp, 14, 0x4F),
            "length below the header": put(tcp, 16, 0, 19),
        }
    return found


@pytest.mark.parametrize("kind", sorted({*broken(V4), *broken(V6)}))
def test_what_contradicts_itself_is_dropped(datapath: Datapath, ends: Ends, kind: str) -> None:
    raw = broken(ends).get(kind)
    if raw is None:
        return
    got = datapath.from_pod(raw)
    assert (got.outcome, got.reason in CUT) == (Outcome.DROP, True), got
    assert not datapath.flows()


def test_padding_after_the_packet_is_left_alone(datapath: Datapath, ends: Ends) -> None:
    sent = bytes(packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.udp(data=b"x")) + b"padding"
    got = datapath.from_pod(sent)
    assert (got.outcome, got.ifindex, got.raw[-7:]) == (Outcome.POD, ALICE_IFINDEX, b"padding")
    assert packets.has_right_checksums(got.raw[:-7])


def test_a_mapped_address_on_the_wire_is_dropped(datapath: Datapath) -> None:
    for source, destination in (("::ffff:10.1.1.10", V6.bob), (V6.alice, "::ffff:10.1.1.11")):
        got = datapath.from_pod(packets.ethernet() / IPv6(src=source, dst=destination) / packets.tcp())
        assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.MALFORMED)


@pytest.mark.parametrize("protocol", [2, 4, 41, 47, 50, 103])
def test_unsupported_protocols(datapath: Datapath, ends: Ends, protocol: int) -> None:
    header = packets.ip(ends.alice, ends.bob, **{"nh" if ends.ipv6 else "proto": protocol})
    got = datapath.from_pod(bytes(packets.ethernet() / header / Raw(bytes(64))))
    allowed = {DropReason.UNSUPPORTED_PROTOCOL, DropReason.UNSUPPORTED_EXTENSION}
    assert (got.outcome, got.reason in allowed) == (Outcome.DROP, True)


def test_icmp_of_the_other_family(datapath: Datapath, ends: Ends) -> None:
    header = packets.ip(ends.alice, ends.bob, **({"nh": 1} if ends.ipv6 else {"proto": 58}))
    got = datapath.from_pod(bytes(packets.ethernet() / header / Raw(b"\x08" + bytes(31))))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_PROTOCOL)


@pytest.mark.parametrize("kind", [4, 5, 9, 13, 17])
def test_unsupported_icmp(datapath: Datapath, kind: int) -> None:
    got = datapath.from_pod(packets.ethernet() / packets.ip(V4.alice, V4.bob) / ICMP(type=kind) / Raw(bytes(20)))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_ICMP)


@pytest.mark.parametrize("kind", [0, 5, 100, 127, 134, 137, 200])
def test_unsupported_icmpv6(datapath: Datapath, kind: int) -> None:
    message = Raw(bytes((kind, 0)) + bytes(30))
    got = datapath.from_pod(packets.ethernet() / packets.ip(V6.alice, V6.bob, nh=58) / message)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_ICMP)


@pytest.mark.parametrize("ethertype", [0x8100, 0x88CC, 0x8847, 0x0005])
def test_unsupported_frames(datapath: Datapath, ethertype: int) -> None:
    got = datapath.from_pod(Ether(src=packets.ALICE_MAC, type=ethertype) / Raw(bytes(60)))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNSUPPORTED_ETHERTYPE)


def test_tcp_options_do_not_matter(datapath: Datapath, ends: Ends) -> None:
    segment = TCP(sport=1, dport=SERVICE_PORT, flags="S", options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)])
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / segment)
    assert got.outcome in {Outcome.POD, Outcome.STACK}
    assert packets.has_right_checksums(got.raw)
