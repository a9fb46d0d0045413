"""The agent's socket: one JSON request a line, one JSON answer a line.

A request is ``{"get": "status"}``, or ``{"get": "citation", "about": {…}}`` where that must be said.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ebpfnet.exits import NotRunning

log = logging.getLogger(__name__)
NAME = "agent.sock"
PATIENCE_S = 2.0
AGAIN_S = 1.0
CONNECTIONS_MAX = 64

Answers = Mapping[str, Callable[..., dict[str, Any]]]
"""What may be asked for, by name; what a request is ``about`` are the keyword arguments."""


def serve(run: Path, answers: Answers, stop: threading.Event) -> None:
    """Answer on ``run``/agent.sock until ``stop`` is set, what ``answers`` has a function for."""
    path = run / NAME
    room = threading.Semaphore(CONNECTIONS_MAX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        if not _listen(listener, path, stop):
            return
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if not room.acquire(timeout=PATIENCE_S):  # who waits that long has asked too many questions at once
                connection.close()
                continue
            threading.Thread(target=_hear, args=(connection, answers, room), daemon=True).start()
    path.unlink(missing_ok=True)


def _listen(listener: socket.socket, path: Path, stop: threading.Event) -> bool:
    """Listen, as soon as there is room for a socket: whether anybody may ask is no reason to serve no pod."""
    told = ""
    while not stop.is_set():
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
        except OSError as error:
            if (text := error.strerror or str(error)) != told:
                log.error("%s: %s; `ebpfnet status` has no answer until that is better", path, text)  # noqa: TRY400
                told = text
            stop.wait(AGAIN_S)
            continue
        path.chmod(0o600)
        listener.listen()
        listener.settimeout(0.2)
        return True
    return False


def _hear(connection: socket.socket, answers: Answers, room: threading.Semaphore) -> None:
    """Answer one connection; one that says nothing holds up no other."""
    with connection, contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        connection.settimeout(PATIENCE_S)
        _answer(connection, answers)
    room.release()


def _answer(connection: socket.socket, answers: Answers) -> None:
    with connection.makefile("rwb") as stream:
        request = json.loads(stream.readline(4096))
        match request:
            case {"get": "ping"}:
                answer: dict[str, Any] = {"ok": True, "pid": os.getpid()}
            case {"get": str(what), "about": dict(about)} if what in answers:
                answer = answers[what](**about)
            case {"get": str(what)} if what in answers:
                answer = answers[what]()
            case _:
                known = " and ".join(f'{{"get": "{each}"}}' for each in (*answers, "ping"))
                answer = {"error": f"unknown request; there are {known}"}
        stream.write(json.dumps(answer).encode() + b"\n")
        stream.flush()


def ask(run: Path, what: str = "status", timeout_s: float = 5.0, **about: Any) -> dict[str, Any]:
    """Return an agent's answer; raises ``NotRunning`` when none is there."""
    path = run / NAME
    request = {"get": what, "about": about} if about else {"get": what}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                answer = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise NotRunning(f"no agent answers on {path} ({error})") from error
    return dict(answer)
