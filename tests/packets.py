"""Packets for the tests: a small cluster's addresses, and scapy expressions over them.

Two nodes. Alice and Bob are pods of the node whose programs are tested, Carol is a pod of the other one.
Service ``service`` leads to Bob and Carol, ``lonely`` to Alice only, ``empty`` to nobody, in both families.
"""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple

from scapy.all import (
    ICMP,
    IP,
    SCTP,
    TCP,
    UDP,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    Packet,
    Raw,
    SCTPChunkInit,
)

from ebpfnet import abi

ALICE_MAC, BOB_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
GATEWAY_MAC, STRANGER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:66"
UPLINK_MAC = "00:00:00:00:00:00"
"""A test run is on the loopback device: for any other MAC, a frame is another host's."""
ALICE_IFINDEX, BOB_IFINDEX, UPLINK_IFINDEX = 1001, 1002, 2
CLIENT_PORT, SERVICE_PORT, POD_PORT = 40_000, 80, 8080


class Ends(NamedTuple):
    """Addresses of one family."""

    alice: str
    bob: str
    carol: str
    service: str
    lonely: str
    empty: str
    gateway: str
    outside: str
    ipv6: bool


V4 = Ends("10.1.1.10", "10.1.1.11", "10.1.2.12", "10.96.0.1", "10.96.0.2", "10.96.0.3", "10.1.1.1", "192.0.2.9", False)
V6 = Ends("fd01::10", "fd01::11", "fd02::12", "fd96::1", "fd96::2", "fd96::3", "fd01::1", "2001:db8::9", True)
FAMILIES = (V4, V6)


def raw(address: str) -> bytes:
    """Return an address as the tables hold it."""
    return abi.pack_address(ipaddress.ip_address(address))


def ethernet(source: str = ALICE_MAC, destination: str = GATEWAY_MAC) -> Packet:
    """Return the Ethernet header of what Alice sends."""
    return Ether(src=source, dst=destination)


def ip(source: str, destination: str, **fields: Any) -> Packet:
    """Return an IP header of the addresses' family; ``ttl`` is the hop limit too."""
    if ":" not in source:
        return IP(src=source, dst=destination, **fields)
    if "ttl" in fields:
        fields["hlim"] = fields.pop("ttl")
    return IPv6(src=source, dst=destination, **fields)


def tcp(flags: str = "S", sport: int = CLIENT_PORT, dport: int = SERVICE_PORT, data: bytes = b"") -> Packet:
    """Return a TCP segment."""
    segment = TCP(sport=sport, dport=dport, flags=flags, seq=1000, ack=2000 if "A" in flags else 0)
    return segment / Raw(data) if data else segment


def udp(sport: int = CLIENT_PORT, dport: int = SERVICE_PORT, data: bytes = b"question") -> Packet:
    """Return a datagram."""
    return UDP(sport=sport, dport=dport) / Raw(data)


def sctp(sport: int = CLIENT_PORT, dport: int = POD_PORT) -> Packet:
    """Return an SCTP INIT."""
    return SCTP(sport=sport, dport=dport) / SCTPChunkInit(init_tag=1)


def echo(ends: Ends, identifier: int = 77, *, answer: bool = False) -> Packet:
    """Return an ICMP echo request or reply."""
    if ends.ipv6:
        kind = ICMPv6EchoReply if answer else ICMPv6EchoRequest
        return kind(id=identifier, seq=1, data=b"abcdefgh")
    return ICMP(type=0 if answer else 8, id=identifier, seq=1) / Raw(b"abcdefgh")


def tuple_of(source: str, destination: str, sport: int, dport: int, protocol: int) -> abi.Tuple:
    """Return a key of ``flows``."""
    return abi.Tuple(raw(source), raw(destination), sport, dport, protocol)


def strip_checksums(packet: Packet) -> Packet:
    """Return a copy whose checksums scapy computes anew when it is built."""
    copy = packet.copy()
    layer = copy
    while layer and layer.name != "NoPayload":
        for field in ("chksum", "cksum"):
            if field in layer.fields:
                del layer.fields[field]
        layer = layer.payload
    return copy


def has_right_checksums(packet: bytes) -> bool:
    """Tell whether scapy would have computed the same checksums; what an ICMP error quotes is left as it is."""
    return bytes(strip_checksums(Ether(packet))) == packet


def unreachable(ends: Ends, quoted: Packet, code: int | None = None) -> Packet:
    """Return port unreachable (or another code) about a packet that its sender got."""
    if ends.ipv6:
        return ICMPv6DestUnreach(code=4 if code is None else code) / Raw(bytes(quoted))
    return ICMP(type=3, code=3 if code is None else code) / Raw(bytes(quoted))


def too_big(ends: Ends, quoted: Packet, mtu: int = 1300) -> Packet:
    """Return "packet too big", or for IPv4 "fragmentation needed", about a packet."""
    if ends.ipv6:
        return ICMPv6PacketTooBig(mtu=mtu) / Raw(bytes(quoted))
    return ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(bytes(quoted))


def time_exceeded(ends: Ends, quoted: Packet) -> Packet:
    """Return "time exceeded" about a packet: what traceroute listens for."""
    if ends.ipv6:
        return ICMPv6TimeExceeded() / Raw(bytes(quoted))
    return ICMP(type=11, code=0) / Raw(bytes(quoted))


def turn(packet: Packet, ends: Ends) -> Packet:
    """Return a packet's IP part as it comes to Alice from outside."""
    header = packet[IPv6] if ends.ipv6 else packet[IP]
    header = header.copy()
    header.src, header.dst = ends.outside, ends.alice
    return strip_checksums(header)


def pieces(source: str, destination: str, payload: bytes, size: int, protocol: int = 17) -> list[Packet]:
    """Return the fragments of an IP packet, each of ``size`` bytes but the last."""
    made = []
    for offset in range(0, len(payload), size):
        part, more = Raw(payload[offset : offset + size]), offset + size < len(payload)
        if ":" in source:
            head = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=7, offset=offset // 8, m=more, nh=protocol)
        else:
            head = IP(src=source, dst=destination, id=7, frag=offset // 8, flags="MF" if more else 0, proto=protocol)
        made.append(head / part)
    return made
