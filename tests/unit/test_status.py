"""The agent's socket: whatever comes in a line, the next who asks is answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet import status
from ebpfnet.exits import NotRunning

ANSWERS: status.Answers = {"status": lambda: {"node": "a"}, "twice": lambda *, number: {"twice": 2 * number}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Return the run directory of something that answers."""
    stop = threading.Event()
    thread = threading.Thread(target=status.serve, args=(tmp_path, ANSWERS, stop))
    thread.start()
    deadline = time.monotonic() + 60
    while not _listens(tmp_path):  # a socket has its name before it can be connected to
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield tmp_path
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def _listens(run: Path) -> bool:
    try:
        return bool(status.ask(run, "ping")["ok"])
    except NotRunning:
        return False


def test_an_answer_may_be_about_something(run: Path):
    assert status.ask(run, "twice", number=4) == {"twice": 8}
    with pytest.raises(NotRunning):
        status.ask(run, "twice", nobody=4)
    assert status.ask(run) == {"node": "a"}


def connect(run: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(run / status.NAME))
    return connection


@pytest.mark.parametrize("line", [b"[" * 4000, b"{", b"\xff\xfe", b"", b"x" * 100_000])
def test_a_strange_line_ends_nothing(run: Path, line: bytes):
    with connect(run) as connection:
        try:
            connection.sendall(line + b"\n")
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # who hears enough hangs up
    assert status.ask(run) == {"node": "a"}


@pytest.mark.parametrize("line", [b"{}", b'"get"', b'{"get": 1}'])
def test_what_is_no_request_is_told_what_is(run: Path, line: bytes):
    with connect(run) as connection, connection.makefile("rwb") as stream:
        stream.write(line + b"\n")
        stream.flush()
        assert "unknown request" in json.loads(stream.readline())["error"]


def test_connections_that_say_nothing_hold_up_no_other(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "PATIENCE_S", 600.0)  # nobody is cut off meanwhile
    idle = [connect(run) for _ in range(8)]
    assert status.ask(run, timeout_s=60) == {"node": "a"}
    for connection in idle:
        connection.close()
