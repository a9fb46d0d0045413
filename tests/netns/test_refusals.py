"""A service without endpoints refuses at once, whatever the packet looks like; real sockets, so that real checksum
offload is in the way."""

from __future__ import annotations

import errno
import socket

import pytest

from ebpfnet.lab.cluster import Inside, Lab

IPV6_DSTOPTS = 59
RECORD_ROUTE = bytes((7, 7, 4, 0, 0, 0, 0, 0))
MANY_NOPS = bytes((1,)) * 40
PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))
LONG_PADDING = bytes((0, 2, 1, 20)) + bytes(20)
OPTIONS: dict[str, dict[int, tuple[int, int, bytes]]] = {
    "plain": {},
    "options": {
        socket.AF_INET: (socket.IPPROTO_IP, socket.IP_OPTIONS, RECORD_ROUTE),
        socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_DSTOPTS, PADDING),
    },
    "long options": {
        socket.AF_INET: (socket.IPPROTO_IP, socket.IP_OPTIONS, MANY_NOPS),
        socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_DSTOPTS, LONG_PADDING),
    },
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [0, 1, 1400, 8000])
def test_a_datagram_is_refused(lab: Lab, caller: Inside, family: int, size: int, options: str):
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        if option := OPTIONS[options].get(family):
            sock.setsockopt(*option)
        sock.settimeout(2)
        sock.connect((lab.service("idle").of(family), 53))
        sock.send(bytes(size))
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_connection_is_refused(lab: Lab, caller: Inside, family: int, options: str):
    with caller.socket(family, socket.SOCK_STREAM) as sock:
        if option := OPTIONS[options].get(family):
            sock.setsockopt(*option)
        sock.settimeout(2)
        assert sock.connect_ex((lab.service("idle").of(family), 80)) == errno.ECONNREFUSED
