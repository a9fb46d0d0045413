"""A network namespace with nothing in it but what test runs need, so that no lookup ever sees this machine's routes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebpfnet.datapath import stage
from ebpfnet.exits import NotRoot

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_there: set[int] = set()  # interfaces of the namespace that was entered last: asking costs as much as a test run


def interface(ifindex: int, uplink: int) -> None:
    """See to it that the private network has an interface of this number, and one to leave by."""
    if ifindex not in _there:
        stage.ensure(ifindex, uplink)
        _there.add(ifindex)


@contextmanager
def private_network() -> Iterator[None]:
    """Put the calling thread into a new network namespace, and back afterwards. Raises ``NotRoot``."""
    home = os.open(Path("/proc/thread-self/ns/net"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _check(_libc.unshare(CLONE_NEWNET))
        except PermissionError as error:
            raise NotRoot("simulate loads programs into the kernel: run it as root") from error
        _there.clear()
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)
