"""Interfaces of this network namespace, and what is behind one: addresses and MAC of a veth's other end.

The other end is asked itself, through the kernel: an interface names its peer's namespace by number and the peer by
index, and both its MAC and its addresses can be read from here. That is exact from the first moment, for every plugin,
and needs no packet to have been sent. Where it gives nothing (no right over that namespace, or an end whose address
is with a machine behind it), the host's own tables say it for plugins of two kinds: host routes and neighbours on
the interface (ptp), the bridge's forwarding table with the neighbours on the bridge (bridge).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet.abi import IPAddress
from ebpfnet.datapath.netlink import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    Attributes,
    Reader,
    attribute,
    attributes,
)

# include/uapi/linux/if_link.h, if_addr.h, rtnetlink.h, neighbour.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 5, 10, 18, 20
_IFLA_LINK_NETNSID, _IFLA_EXT_MASK, _IFLA_TARGET_NETNSID = 37, 29, 46
_IFLA_INFO_KIND = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_TARGET_NETNSID = 1, 2, 10
_RTA_DST, _RTA_OIF = 1, 4
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX, _NDA_MASTER = 1, 2, 8, 9
_SKIP_STATS = 1 << 3
_SCOPE_GLOBAL = 0
_RTN_UNICAST = 1
_RTPROT_KERNEL = 2
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_MAC_BYTES = 6


class Link(NamedTuple):
    """An interface."""

    ifindex: int
    name: str
    alias: str
    kind: str
    master: int
    peer: int
    """Index of a veth's other end, there; 0: none."""
    namespace: int | None
    """Number of the namespace of the other end; None: this one."""


class Behind(NamedTuple):
    """What is behind an interface; ``mac`` is zero where nobody knows it."""

    mac: bytes
    addresses: tuple[IPAddress, ...]


NOTHING = Behind(bytes(_MAC_BYTES), ())


def links(reader: Reader) -> list[Link]:
    """Return every interface of this network namespace."""
    head = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = reader.ask(RTM_GETLINK, head, attribute(_IFLA_EXT_MASK, _number(_SKIP_STATS)))
    return [_link(_LINK.unpack(message.head)[2], message.attributes) for message in found]


def _link(ifindex: int, found: Attributes) -> Link:
    kind = attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    namespace = found.get(_IFLA_LINK_NETNSID)
    return Link(
        ifindex,
        _text(found.get(_IFLA_IFNAME, b"")),
        _text(found.get(_IFLA_IFALIAS, b"")),
        _text(kind),
        _unpacked(found.get(_IFLA_MASTER)),
        _unpacked(found.get(_IFLA_LINK)),
        None if namespace is None else _unpacked(namespace),
    )


def behind(reader: Reader, link: Link) -> Behind:
    """Return what is behind an interface, as far as anybody knows now."""
    try:
        found = _ask_peer(reader, link)
    except OSError:  # it just went away, or is not for us to ask
        found = NOTHING
    return found if found.addresses else _ask_host(reader, link, found.mac)


def _ask_peer(reader: Reader, link: Link) -> Behind:
    if link.namespace is None or link.namespace < 0 or not link.peer:
        return NOTHING
    there = _number(link.namespace)
    head = _LINK.pack(socket.AF_UNSPEC, 0, link.peer, 0, 0)
    asked = reader.ask(RTM_GETLINK, head, attribute(_IFLA_TARGET_NETNSID, there), dump=False)
    mac = next(iter(asked)).attributes.get(_IFLA_ADDRESS, b"")
    addresses = []
    head = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, link.peer)
    for message in reader.ask(RTM_GETADDR, head, attribute(_IFA_TARGET_NETNSID, there)):
        _, _, _, scope, ifindex = _ADDRESS.unpack(message.head)
        raw = message.attributes.get(_IFA_LOCAL) or message.attributes.get(_IFA_ADDRESS, b"")
        if ifindex == link.peer and scope == _SCOPE_GLOBAL:
            addresses.append(_address(raw))
    return Behind(mac if len(mac) == _MAC_BYTES else NOTHING.mac, tuple(addresses))


def _ask_host(reader: Reader, link: Link, mac: bytes) -> Behind:
    """Return what the host's routes, neighbours and forwarding tables say."""
    try:
        if link.master:
            ports = set(_forwarded(reader, link))
            near = {address: found for address, found in _neighbours(reader, link.master) if found in ports}
            addresses = list(near)
        else:
            near = dict(_neighbours(reader, link.ifindex))
            addresses = list(_host_routes(reader, link))
    except OSError:
        return Behind(mac, ())
    macs = {near[address] for address in addresses if address in near}
    if mac == NOTHING.mac and len(macs) == 1:
        mac = macs.pop()
    return Behind(mac, tuple(addresses))


def _host_routes(reader: Reader, link: Link) -> Iterator[IPAddress]:
    for family, bits in ((socket.AF_INET, 32), (socket.AF_INET6, 128)):
        head = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for message in reader.ask(RTM_GETROUTE, head, attribute(_RTA_OIF, _number(link.ifindex))):
            _, length, _, _, _, protocol, _, kind, _ = _ROUTE.unpack(message.head)
            raw = message.attributes.get(_RTA_DST, b"")
            if length != bits or kind != _RTN_UNICAST or protocol == _RTPROT_KERNEL:  # the last: of its own address
                continue
            if not _is_link_local(raw):
                yield _address(raw)


def _neighbours(reader: Reader, ifindex: int) -> Iterator[tuple[IPAddress, bytes]]:
    head = _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for message in reader.ask(RTM_GETNEIGH, head, attribute(_NDA_IFINDEX, _number(ifindex))):
        raw, mac = message.attributes.get(_NDA_DST, b""), message.attributes.get(_NDA_LLADDR, b"")
        if len(mac) == _MAC_BYTES and not _is_link_local(raw):
            yield _address(raw), mac


def _forwarded(reader: Reader, link: Link) -> Iterator[bytes]:
    """Yield the MACs that a bridge has learnt on one of its ports."""
    head = _NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
    for message in reader.ask(RTM_GETNEIGH, head, attribute(_NDA_MASTER, _number(link.master))):
        if _NEIGHBOUR.unpack(message.head)[1] == link.ifindex:
            yield message.attributes.get(_NDA_LLADDR, b"")


def _address(raw: bytes) -> IPAddress:
    return ipaddress.IPv4Address(raw) if len(raw) == 4 else ipaddress.IPv6Address(raw)


def _is_link_local(raw: bytes) -> bool:
    return raw[:1] == b"\xff" or (raw[:1] == b"\xfe" and len(raw) == 16)


def _number(value: int) -> bytes:
    return struct.pack("=i", value)


def _unpacked(raw: bytes | None) -> int:
    return struct.unpack("=i", raw)[0] if raw else 0


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
