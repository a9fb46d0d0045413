"""Ports of this node that a local process listens at: sock_diag(7) for TCP and UDP, /proc/net/sctp/eps for SCTP.

Asking sock_diag about SCTP would load the kernel's module for it on every node that has none.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ebpfnet.abi import IPAddress, unpack_address
from ebpfnet.datapath.netlink import Reader

SCTP_ENDPOINTS = Path("/proc/net/sctp/eps")

_SOCK_DIAG_BY_FAMILY = 20
# include/uapi/linux/inet_diag.h: inet_diag_req_v2 up to its states, then the socket's id, which a dump leaves zero.
_REQUEST = struct.Struct("=BBxxI48x")
_SOCKET = struct.Struct(">BBxxHH16s")  # struct inet_diag_msg, as far as we read it
_ANSWER = 72
_CLOSE, _LISTEN = 7, 10  # include/net/tcp_states.h; an UDP socket that is connected to nobody is in the first
_WAITING = {socket.IPPROTO_TCP: _LISTEN, socket.IPPROTO_UDP: _CLOSE}
_SCTP_PORT, _SCTP_ADDRESSES = 5, 8  # columns


class Listening(NamedTuple):
    """A socket that anybody may send to; ``address`` None: at every address of the node."""

    protocol: int
    address: IPAddress | None
    port: int


def listening(reader: Reader) -> Iterator[Listening]:
    """Yield what listens in this network namespace; ``reader`` is one for ``netlink.SOCK_DIAG``."""
    for protocol, state in _WAITING.items():
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                for message in reader.ask(
                    _SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, protocol, 1 << state), answer_head=_ANSWER
                ):
                    yield _listening(protocol, message.head)
            except OSError as error:
                if error.errno != errno.ENOENT:  # a kernel without this part of sock_diag
                    raise
    yield from _sctp()


def _listening(protocol: int, head: bytes) -> Listening:
    family, _, port, _, raw = _SOCKET.unpack_from(head)
    address = ipaddress.IPv4Address(raw[:4]) if family == socket.AF_INET else unpack_address(raw)
    return Listening(protocol, None if address.is_unspecified else address, port)


def _sctp() -> Iterator[Listening]:
    try:
        rows = [line.split() for line in SCTP_ENDPOINTS.read_text().splitlines()[1:]]
    except OSError:  # no SCTP in this kernel, or nobody has used it
        return
    for row in rows:
        for text in row[_SCTP_ADDRESSES:]:
            address = ipaddress.ip_address(text)
            some = None if address.is_unspecified else address
            yield Listening(socket.IPPROTO_SCTP, some, int(row[_SCTP_PORT]))
