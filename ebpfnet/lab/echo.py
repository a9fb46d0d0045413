"""The echo server of a lab's pod: says who answered, and whom it saw. Standard library only; run as a file.

On each TCP port a line is answered with a line, on the same connection for as long as the client likes; a line that
starts like an HTTP request is answered with HTTP. SCTP ports do the same where the kernel has SCTP, and stay closed
where it has not. On each UDP port a datagram is answered with a datagram. The answer
is one JSON object: ``{"pod": "NS/NAME", "client": "IP:PORT", "protocol": "TCP", "bytes": size of the request}``.
``pad=N`` anywhere in the request adds ``"pad"``, a text of N bytes, to make the answer large.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import re
import signal
import socket
import sys
import typing
from collections.abc import Sequence

_PAD = re.compile(rb"pad=(\d{1,8})")
_LINE_LIMIT = 1 << 20


def answer(pod: str, client: tuple[str, int], protocol: str, request: bytes) -> bytes:
    """Return the answer to one request, ending in a newline."""
    host, port = client[:2]
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    result: dict[str, object] = {"pod": pod, "client": shown, "protocol": protocol, "bytes": len(request)}
    if wanted := _PAD.search(request):
        result["pad"] = "x" * int(wanted[1])
    return json.dumps(result).encode() + b"\n"


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with one."""

    def __init__(self, pod: str) -> None:
        self.pod = pod
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket to answer through."""
        self.transport = typing.cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer."""
        if self.transport is not None:
            self.transport.sendto(answer(self.pod, addr, "UDP", data), addr)

    def error_received(self, exc: Exception) -> None:
        """Nothing: a client that went away is its own business."""


async def serve_stream(pod: str, protocol: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the lines, or the one HTTP request, of a connection."""
    client = writer.get_extra_info("peername")
    try:
        while line := await reader.readline():
            if re.match(rb"(GET|HEAD|POST) \S+ HTTP/", line):
                await _serve_http(pod, client, line, reader, writer)
                return
            writer.write(answer(pod, client, protocol, line))
            await writer.drain()
    except (ConnectionError, ValueError, TimeoutError):
        pass  # the client went away, or sent a line longer than the limit
    finally:
        writer.close()


async def _serve_http(
    pod: str, client: tuple[str, int], request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while (await reader.readline()).strip():
        pass
    body = answer(pod, client, "HTTP", request)
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    head = "\r\n".join(("HTTP/1.1 200 OK", *fields, "", ""))
    writer.write(head.encode() + (b"" if request.startswith(b"HEAD") else body))
    await writer.drain()


def listening(family: int, kind: int, port: int, protocol: int = 0) -> socket.socket | None:
    """Return a socket bound to a port of one family, or None when the kernel lacks the family or the protocol."""
    try:
        sock = socket.socket(family, kind, protocol)
    except OSError:
        return None
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    sock.setblocking(False)
    return sock


async def serve(pod: str, tcp: Sequence[int], udp: Sequence[int], ready: int | None, sctp: Sequence[int] = ()) -> None:
    """Serve until SIGTERM; ``ready`` is a file descriptor that gets a byte when all ports are open."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    servers: list[object] = []  # the loop holds its servers only weakly
    for name, protocol, ports in (("TCP", socket.IPPROTO_TCP, tcp), ("SCTP", socket.IPPROTO_SCTP, sctp)):
        connected = functools.partial(serve_stream, pod, name)
        for sock in _sockets(socket.SOCK_STREAM, ports, protocol):
            servers += [await asyncio.start_server(connected, sock=sock, limit=_LINE_LIMIT, backlog=1024)]
    for sock in _sockets(socket.SOCK_DGRAM, udp):
        await loop.create_datagram_endpoint(lambda: Datagrams(pod), sock=sock)
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    await stop.wait()


def _sockets(kind: int, ports: Sequence[int], protocol: int = 0) -> list[socket.socket]:
    pairs = [(family, port) for family in (socket.AF_INET, socket.AF_INET6) for port in ports]
    return [sock for family, port in pairs if (sock := listening(family, kind, port, protocol)) is not None]


def main() -> None:
    """Command line: ``echo.py --pod NS/NAME [--tcp PORT]… [--udp PORT]… [--sctp PORT]… [--ready FD]``."""
    parser = argparse.ArgumentParser(description="Echo server of a lab's pod.")
    parser.add_argument("--pod", required=True)
    parser.add_argument("--tcp", type=int, action="append", default=[])
    parser.add_argument("--udp", type=int, action="append", default=[])
    parser.add_argument("--sctp", type=int, action="append", default=[])
    parser.add_argument("--ready", type=int)
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.pod, options.tcp, options.udp, options.ready, options.sctp))
    except OSError as error:
        sys.exit(f"echo server of {options.pod}: {error}")


if __name__ == "__main__":
    main()
