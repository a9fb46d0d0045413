"""One agent at a time: locks on the run directory and on the pins, for two would undo each other's work.

Both end with their process, however it ends. A pin directory has no files to lock; the directory itself is locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ebpfnet.exits import EbpfnetError

LOCK = "agent.lock"
HANDOVER_S = 2.0  # a killed agent may take a moment to be gone when its successor is there already


@contextlib.contextmanager
def alone(run: Path, pins: Path, *, make: bool = True) -> Iterator[None]:
    """Hold the run directory and the pins; raises ``EbpfnetError`` when another does.

    With ``make`` they are made (a pin directory that stays empty goes again), else only what is there is held.
    """
    with contextlib.ExitStack() as stack:
        if make or (run / LOCK).exists():
            stack.enter_context(_run(run))
        if make or pins.is_dir():
            stack.enter_context(_pins(pins))
        yield


@contextlib.contextmanager
def _run(run: Path) -> Iterator[None]:
    path = run / LOCK
    with contextlib.ExitStack() as stack:
        with _made("run directory", run):
            run.mkdir(mode=0o755, parents=True, exist_ok=True)
            lock = stack.enter_context(path.open("a+"))
        if not _locked(lock.fileno()):
            lock.seek(0)
            raise EbpfnetError(f"another agent (pid {lock.read().strip()}) is running on {run}")
        _check_same(lock.fileno(), path)
        lock.truncate(0)
        with contextlib.suppress(OSError):  # a full disk: who holds the lock is good to know, and no more
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield


@contextlib.contextmanager
def _made(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EbpfnetError(f"the {what} {path} can't be used: {error.strerror}") from error


@contextlib.contextmanager
def _pins(pins: Path) -> Iterator[None]:
    made = not pins.exists()
    with _made("pin directory", pins):
        pins.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(pins, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _locked(descriptor):
            raise EbpfnetError(f"another agent, with another --run, is running on the maps in {pins}")
        _check_same(descriptor, pins)
        yield
        made = False
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty
                pins.rmdir()
        os.close(descriptor)


def _check_same(descriptor: int, path: Path) -> None:
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise EbpfnetError(f"{path} was removed by a clean-up; start again")


def _locked(descriptor: int) -> bool:
    deadline = time.monotonic() + HANDOVER_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True
