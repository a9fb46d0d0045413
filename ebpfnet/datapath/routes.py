"""Where the node's own packets to an address leave: the kernel's routes, asked one address at a time."""

from __future__ import annotations

import socket
import struct
from typing import Self

from ebpfnet.abi import V4_PREFIX, Wire
from ebpfnet.datapath.netlink import RTM_GETLINK, RTM_GETROUTE, Reader, attribute

_IFLA_ADDRESS = 1
_RTA_DST, _RTA_OIF = 1, 4
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg


class Asked:
    """Remembers answers for as long as it is open."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._wires: dict[bytes, Wire] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def way_out(self, address: bytes) -> Wire:
        """Return interface and MAC by which the node sends to an address (16 bytes); raises ``OSError``: no route."""
        if address not in self._wires:
            self._wires[address] = self._ask(address)
        return self._wires[address]

    def _ask(self, address: bytes) -> Wire:
        mapped = address.startswith(V4_PREFIX)
        raw = address[12:] if mapped else address
        family = socket.AF_INET if mapped else socket.AF_INET6
        head = _ROUTE.pack(family, 8 * len(raw), 0, 0, 0, 0, 0, 0, 0)
        route = next(iter(self._reader.ask(RTM_GETROUTE, head, attribute(_RTA_DST, raw), dump=False)))
        ifindex = int.from_bytes(route.attributes[_RTA_OIF], "little")
        head = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
        link = next(iter(self._reader.ask(RTM_GETLINK, head, dump=False)))
        return Wire(ifindex, link.attributes.get(_IFLA_ADDRESS, bytes(6))[:6].ljust(6, b"\0"))
