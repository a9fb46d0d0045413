"""A network namespace with nothing in it, so that no lookup of the datapath ever sees this machine's routes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebpfnet.exits import NotRoot

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def private_network() -> Iterator[None]:
    """Put the calling thread into a new network namespace, and back afterwards. Raises ``NotRoot``."""
    home = os.open(Path("/proc/thread-self/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _check(_libc.unshare(CLONE_NEWNET))
        except PermissionError as error:
            raise NotRoot("simulate loads programs into the kernel: run it as root") from error
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)
