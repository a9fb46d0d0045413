"""The addresses of this node itself: every one that is on an interface of this network namespace."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from ebpfnet.abi import IPAddress
from ebpfnet.datapath.netlink import RTM_GETADDR, Reader

# include/uapi/linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40

IPVS = "kube-ipvs0"
"""kube-proxy's in IPVS mode: what is on it are services' addresses, not the node's."""


class Own(NamedTuple):
    """An address on an interface. ``lasting``: fit to stand for others, not on trial, RFC 8981's or about to go."""

    address: IPAddress
    ifindex: int
    lasting: bool = True


def own(reader: Reader) -> tuple[Own, ...]:
    """Return the node's addresses in the kernel's order, loopback's blocks left out."""
    services = _index(IPVS)
    found = []
    for message in reader.ask(RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, _, flags, _, ifindex = _ADDRESS.unpack(message.head)
        wide = message.attributes.get(_IFA_FLAGS)
        flags = int.from_bytes(wide, "little") if wide else flags
        raw = message.attributes.get(_IFA_LOCAL) or message.attributes.get(_IFA_ADDRESS, b"")
        address = ipaddress.ip_address(raw)
        if ifindex != services and not address.is_loopback:
            # A primary IPv4 address has no such bit: 0x01 means secondary there, and lasts as long.
            passing = _DEPRECATED | _DADFAILED | _TENTATIVE | (_TEMPORARY if address.version == 6 else 0)
            found.append(Own(address, ifindex, lasting=not flags & passing))
    return tuple(found)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0
