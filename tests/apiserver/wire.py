"""The connection of one client as bytes go out: what faults do to bytes is done here."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterable

from tests.apiserver.faults import Fault

TICK_S = 0.05
END = b"0\r\n\r\n"


class Gone(Exception):
    """The connection is over: the client left, the server dropped it, or a fault ends it here."""


class Wire:
    """A socket to write to; ``dropped`` is set when the server ends the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.dropped = threading.Event()
        self.fault: Fault | None = None
        self._room: int | None = None

    def begin(self, fault: Fault | None) -> None:
        """Start a request that a fault may happen to."""
        self.fault = fault
        cut = fault is not None and fault.kind == Fault.Kind.CUT and fault.events is None
        self._room = (fault.bytes or 0) if fault and cut else None

    def drop(self) -> None:
        """End the connection; from any thread. Past TLS: its own shutdown is for the thread that writes."""
        self.dropped.set()
        with contextlib.suppress(OSError):  # the client was first
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def head(self, status: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        """Send a status line and headers, and with them a body that no fault touches."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)

    def send(self, data: bytes) -> None:
        """Send a part of a body. Raises Gone."""
        if self._room is not None:
            data, self._room = data[: self._room], self._room - len(data)
        if self.fault and self.fault.kind == Fault.Kind.SLOW:
            self._trickle(data, max(1, int(self.fault.rate * TICK_S)))
        else:
            self._write(data)
        if self._room is not None and self._room <= 0:
            raise Gone

    def stall(self) -> None:
        """Send nothing more until the connection ends, then raise Gone."""
        while not self.left():
            self.dropped.wait(TICK_S)
        raise Gone

    def left(self) -> bool:
        """Say whether the client went away: it has nothing to say while it waits, so what can be read is its end."""
        if self.dropped.is_set():
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLRDHUP)
        return bool(poll.poll(0))

    def _trickle(self, data: bytes, step: int) -> None:
        for begin in range(0, len(data), step):
            self._write(data[begin : begin + step])
            self.dropped.wait(TICK_S)

    def _write(self, data: bytes) -> None:
        if self.dropped.is_set():
            raise Gone
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone from error


def chunk(data: bytes) -> bytes:
    """Return a chunk of HTTP/1.1's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
