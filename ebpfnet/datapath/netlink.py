"""Netlink, as far as reading interfaces and sockets needs it: dumps with the kernel's own filters, and word of changes.

pyroute2 knows all of this, but decodes every attribute of every message; these lists are read anew at each change.
``NETLINK_GET_STRICT_CHK`` makes the kernel heed a dump's filters, ``IFA_TARGET_NETNSID`` and its like among them
(Linux d3e8869ec826, 5.0): with them it answers about another network namespace that nobody has to enter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

RTM_NEWLINK, RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 16, 18, 22, 26, 30
LINKS, FILTERS = 0x1, 0x8  # RTMGRP_LINK, RTMGRP_TC
ADDRESSES = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
GROUPS = LINKS | ADDRESSES
ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12  # include/uapi/linux/netlink.h

_SOL_NETLINK = 270
_NETLINK_LISTEN_ALL_NSID, _NETLINK_GET_STRICT_CHK = 8, 12
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_EXCL, _NLM_F_CREATE = 0x200, 0x400
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_BUFFER = 1 << 18

Attributes = Mapping[int, bytes]


class Message(NamedTuple):
    """One answer: the fixed part that its kind begins with, and the attributes after it."""

    head: bytes
    attributes: Attributes


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(raw: bytes) -> Attributes:
    """Return the attributes of a message's rest, or of a nested attribute."""
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = raw[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3
    return found


class Reader:
    """Asks this network namespace's kernel, that part of it which a netlink protocol is for."""

    def __init__(self, protocol: int = ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, head: bytes, *wanted: bytes, dump: bool = True, answer_head: int = 0) -> Iterator[Message]:
        """Yield the answers to a request with these attributes; raises ``OSError`` with the kernel's number.

        ``answer_head`` is the size of an answer's fixed part where it is not that of the request.
        """
        size = answer_head or len(head)
        self._send(kind, _NLM_F_DUMP if dump else 0, head + b"".join(wanted))
        going = True
        while going:
            raw = self._socket.recv(_BUFFER)
            offset = 0
            while going and offset + _HEADER.size <= len(raw):
                length, answer, _, sequence, _ = _HEADER.unpack_from(raw, offset)
                payload = raw[offset + _HEADER.size : offset + length]
                offset += length + 3 & ~3
                if sequence != self._sequence:  # of a dump that nobody read to its end
                    continue
                if answer in {_NLMSG_ERROR, _NLMSG_DONE}:
                    _check(payload)
                    going = False
                else:
                    going = dump
                    yield Message(payload[:size], attributes(payload[size:]))

    def tell(self, kind: int, head: bytes, *wanted: bytes, make: bool = False) -> None:
        """Have something done; raises ``OSError`` with the kernel's number.

        With ``make``, something is made that must not be there yet.
        """
        self._send(kind, _NLM_F_ACK | (_NLM_F_EXCL | _NLM_F_CREATE if make else 0), head + b"".join(wanted))
        while True:
            raw = self._socket.recv(_BUFFER)
            _, answer, _, sequence, _ = _HEADER.unpack_from(raw)
            if answer == _NLMSG_ERROR and sequence == self._sequence:
                _check(raw[_HEADER.size :])
                return

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        head = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(head + body)


def _check(payload: bytes) -> None:
    number = -int.from_bytes(payload[:4], "little", signed=True) if len(payload) >= 4 else 0
    if number > 0:
        raise OSError(number, os.strerror(number))


class Changes:
    """Word of interfaces and addresses that come, change and go, here and in the namespaces that have a number here.

    Word only: what changed is read anew. So a lost event (ENOBUFS) is no worse than any other.
    """

    def __init__(self, buffer_bytes: int | None = None, groups: int = GROUPS) -> None:
        self.lost = 0
        """How often the kernel said that events were lost."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, ROUTE)
        with contextlib.suppress(PermissionError):  # without it a pod's late address is seen by the next event
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
        if buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._socket.bind((0, groups))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until something changed, at most so long, and say whether it did."""
        poll = select.poll()  # select() takes no descriptor above 1,023
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        while True:
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
