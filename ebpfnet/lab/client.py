"""What a client says to an echo server, and what it hears: each call is a connection of its own from inside a place.

``source`` is the client's own address, where it has several.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from ebpfnet.lab.cluster import Inside

TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and whom the server saw."""

    pod: str
    client: str
    protocol: str
    bytes: int
    pad: str = ""


def tcp(
    place: Inside,
    address: str,
    port: int,
    request: bytes = b"hello\n",
    timeout: float = TIMEOUT,
    source: str = "",
) -> Answer:
    """Connect, send a line, return the answer."""
    return _stream(place, socket.IPPROTO_TCP, address, port, request, timeout, source)


def sctp(
    place: Inside,
    address: str,
    port: int,
    request: bytes = b"hello\n",
    timeout: float = TIMEOUT,
    source: str = "",
) -> Answer:
    """Do over SCTP what ``tcp`` does; ``OSError`` where the kernel has no SCTP of its own."""
    return _stream(place, socket.IPPROTO_SCTP, address, port, request, timeout, source)


def _stream(
    place: Inside, protocol: int, address: str, port: int, request: bytes, timeout: float, source: str
) -> Answer:
    with connected(place, protocol, address, port, timeout, source) as sock:
        sock.sendall(request)
        return parse(_line(sock))


def http(place: Inside, address: str, port: int, path: str = "/", timeout: float = TIMEOUT, source: str = "") -> Answer:
    """GET a path."""
    host = f"[{address}]" if ":" in address else address
    with connected(place, socket.IPPROTO_TCP, address, port, timeout, source) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"no HTTP answer: {head[:80]!r}")
    return parse(body)


def udp(
    place: Inside,
    address: str,
    port: int,
    request: bytes = b"hello",
    timeout: float = TIMEOUT,
    source: str = "",
) -> Answer:
    """Send a datagram, return the answer; only an answer from that very address and port counts."""
    with connected(place, socket.IPPROTO_UDP, address, port, timeout, source) as sock:
        sock.send(request)
        return parse(sock.recv(65535))


def family(address: str) -> int:
    """Return the socket family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def parse(raw: bytes) -> Answer:
    """Read an echo server's answer."""
    document: dict[str, Any] = json.loads(raw)
    return Answer(**document)


def connected(
    place: Inside, protocol: int, address: str, port: int, timeout: float = TIMEOUT, source: str = ""
) -> socket.socket:
    """Return a socket of a place, connected; for whoever wants to keep it."""
    kind = socket.SOCK_DGRAM if protocol == socket.IPPROTO_UDP else socket.SOCK_STREAM
    sock = place.socket(family(address), kind, protocol)
    sock.settimeout(timeout)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _line(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as stream:
        line = stream.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the connection ended before the answer did")
    return line
