"""First packets and their answers, built and read at a microsecond each: no options, no fragments, no scapy.

A packet is made from its tuple, the 40 bytes that are a key in ``flows``, so that what goes in, what comes out and
what the datapath remembers are compared as bytes.
"""

from __future__ import annotations

import functools
import socket
import struct

from ebpfnet import abi

TTL = 64
TCP_SYN, TCP_RST, TCP_ACK = 0x02, 0x04, 0x10
_V4_HEADER = struct.Struct("!BBHHHBBH4s4s")
_V6_HEADER = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!4sIIBBHHH")
_UDP = struct.Struct("!4sHH")
_ECHO = struct.Struct("!BBH2sH")
_TAIL = b"\0\0\0"
_SECOND_HEADERS = {b"\x08\0": (4, 20), b"\x86\xdd": (41, 40)}  # protocol and length, by kind of frame
_ECHO_TYPES = {abi.Protocol.ICMP: (8, 0), abi.Protocol.ICMPV6: (128, 129)}
_CHECKSUM_AT = {abi.Protocol.TCP: 16, abi.Protocol.UDP: 6, abi.Protocol.ICMP: 2, abi.Protocol.ICMPV6: 2}
PAYLOAD = b"ebpfnet\0"


def tuple_key(source: bytes, destination: bytes, source_port: int, port: int, protocol: int) -> bytes:
    """Return the tuple of two packed addresses, ports and a protocol; ICMP echo: both ports are the identifier."""
    return source + destination + source_port.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes((protocol, 0, 0, 0))


def reverse(key: bytes) -> bytes:
    """Return the tuple of the answers."""
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


def is_ipv6(key: bytes) -> bool:
    """Tell a tuple's address family."""
    return not key.startswith(abi.V4_PREFIX)


def build(key: bytes, source_mac: bytes, destination_mac: bytes, *, answer: bool) -> bytes:
    """Return the first packet of a connection with this tuple, or the first answer to one."""
    transport = _transport(key, answer=answer)
    protocol = key[36]
    ipv6 = is_ipv6(key)
    if protocol in _CHECKSUM_AT:
        covered = transport if protocol == abi.Protocol.ICMP else _pseudo(key, len(transport)) + transport
        check = _checksum(covered) or (0xFFFF if protocol == abi.Protocol.UDP else 0)
        at = _CHECKSUM_AT[abi.Protocol(protocol)]
        transport = transport[:at] + check.to_bytes(2, "big") + transport[at + 2 :]
    if ipv6:
        header = _V6_HEADER.pack(6 << 28, len(transport), protocol, TTL, key[:16], key[16:32])
        return destination_mac + source_mac + b"\x86\xdd" + header + transport
    fields = (0x45, 0, 20 + len(transport), 1, 0x4000, TTL, protocol)
    check = _checksum(_V4_HEADER.pack(*fields, 0, key[12:16], key[28:32]))
    header = _V4_HEADER.pack(*fields, check, key[12:16], key[28:32])
    return destination_mac + source_mac + b"\x08\0" + header + transport


def _transport(key: bytes, *, answer: bool) -> bytes:
    protocol = key[36]
    if protocol == abi.Protocol.TCP:
        return _TCP.pack(key[32:36], 1, int(answer), 0x50, TCP_SYN | (TCP_ACK if answer else 0), 64240, 0, 0)
    if protocol == abi.Protocol.UDP:
        return _UDP.pack(key[32:36], 8 + len(PAYLOAD), 0) + PAYLOAD
    if protocol == abi.Protocol.SCTP:
        return _sctp(key[32:36], answer=answer)
    return _ECHO.pack(_ECHO_TYPES[abi.Protocol(protocol)][answer], 0, 0, key[32:34], 1) + PAYLOAD


@functools.lru_cache(maxsize=4096)
def _sctp(ports: bytes, *, answer: bool) -> bytes:
    """Return INIT or INIT ACK (RFC 9260 §3.3.2, §3.3.3); the checksum covers no address, so it is worth keeping."""
    cookie = struct.pack("!HH4s", 7, 8, b"cook") if answer else b""
    chunk = struct.pack("!BBHIIHHI", 2 if answer else 1, 0, 20 + len(cookie), 1, 65536, 1, 1, 1) + cookie
    tag = struct.pack("!I", int(answer))
    check = crc32c(ports + tag + bytes(4) + chunk)
    return ports + tag + check.to_bytes(4, "little") + chunk


@functools.lru_cache(maxsize=1)
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        crc = octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the CRC that SCTP uses (RFC 9260 appendix A)."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ table[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _pseudo(key: bytes, length: int) -> bytes:
    """Return the pseudo header; the prefixes of mapped IPv4 addresses sum up to nothing, so one form serves both."""
    return key[:32] + struct.pack("!II", length, key[36])


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071): one's complement addition is addition modulo 65535."""
    if len(data) % 2:
        data += b"\0"
    return (0xFFFF - int.from_bytes(data, "big") % 0xFFFF) % 0xFFFF


def tuple_of(packet: bytes) -> bytes:
    """Return the tuple of a packet without options; raises ``ValueError`` when it has any or is no IP packet."""
    kind = packet[12:14]
    if kind == b"\x08\0" and packet[14] == 0x45:
        addresses = abi.V4_PREFIX + packet[26:30] + abi.V4_PREFIX + packet[30:34]
        protocol, at = packet[23], 34
    elif kind == b"\x86\xdd":
        addresses, protocol, at = packet[22:54], packet[20], 54
    else:
        raise ValueError(f"not a plain IP packet: {packet[:40].hex()}")
    ports = packet[at + 4 : at + 6] * 2 if protocol in _ECHO_TYPES else packet[at : at + 4]
    return addresses + ports + bytes((protocol,)) + _TAIL


def unwrapped(packet: bytes) -> bytes | None:
    """Return the packet that another node's second header is around, None when there is no such header."""
    protocol, length = _SECOND_HEADERS[packet[12:14]]
    if packet[23 if length == 20 else 20] != protocol:
        return None
    return packet[:14] + packet[14 + length :]


def way_of(packet: bytes) -> bytes:
    """Return a second header as a tuple: from one node to a backend, whose port it names."""
    key = tuple_of(packet)
    port = packet[16:18] if is_ipv6(key) else packet[18:20]  # flow label, identification
    return key[:32] + b"\0\0" + port + key[36:]


def checksums_hold(packet: bytes) -> bool:
    """Tell whether every checksum of a packet that ``tuple_of`` reads is right."""
    key = tuple_of(packet)
    ipv6, protocol = is_ipv6(key), key[36]
    transport = packet[54:] if ipv6 else packet[34:]
    if not ipv6 and int.from_bytes(packet[14:34], "big") % 0xFFFF:
        return False
    if protocol == abi.Protocol.SCTP:
        return crc32c(transport[:8] + bytes(4) + transport[12:]) == int.from_bytes(transport[8:12], "little")
    if protocol == abi.Protocol.UDP and transport[6:8] == b"\0\0":
        return not ipv6  # RFC 8200 §8.1: never zero over IPv6
    covered = transport if protocol == abi.Protocol.ICMP else _pseudo(key, len(transport)) + transport
    return int.from_bytes(covered + bytes(len(covered) % 2), "big") % 0xFFFF == 0


def forwarded(packet: bytes, source_mac: bytes, destination_mac: bytes) -> bytes:
    """Return the packet as a router sends it on: time to live one less, its MACs in place of the others."""
    kind = packet[12:14]
    if kind == b"\x86\xdd":
        return destination_mac + source_mac + packet[12:21] + bytes((packet[21] - 1,)) + packet[22:]
    header = packet[14:22] + bytes((packet[22] - 1,)) + packet[23:24] + b"\0\0" + packet[26:34]
    check = _checksum(header).to_bytes(2, "big")
    return destination_mac + source_mac + kind + header[:10] + check + header[12:] + packet[34:]


def is_refusal(packet: bytes, key: bytes) -> bool:
    """Tell whether ``packet`` refuses a connection with this tuple: its checksums, its addresses, what it says."""
    if packet[12:14] == b"\x08\0" and packet[14] != 0x45:
        return False
    if not checksums_hold(packet):
        return False
    got, back = tuple_of(packet), reverse(key)
    if key[36] == abi.Protocol.TCP:
        flags = packet[67] if is_ipv6(key) else packet[47]
        return got == back and bool(flags & TCP_RST)
    unreachable = packet[54:56] == b"\x01\x04" if is_ipv6(key) else packet[34:36] == b"\x03\x03"
    return got[:32] == back[:32] and unreachable


def show_address(packed: bytes) -> str:
    """Return 16 bytes of address as text."""
    if packed.startswith(abi.V4_PREFIX):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def show_end(address: bytes, port: bytes) -> str:
    """Return ``IP:PORT``, or ``[IP]:PORT``; ``port`` is 2 bytes in network order."""
    text = show_address(address)
    number = int.from_bytes(port, "big")
    return f"[{text}]:{number}" if ":" in text else f"{text}:{number}"


def show(key: bytes) -> str:
    """Return a tuple for people; a second header says so."""
    if key[36] in {protocol for protocol, _ in _SECOND_HEADERS.values()}:
        return f"{show_address(key[:16])} > {show_end(key[16:32], key[34:36])}, the packet as it came"
    return f"{show_end(key[:16], key[32:34])} > {show_end(key[16:32], key[34:36])}"
