"""Network namespaces: make one under /run/netns (``ip netns`` sees it), remove it, run Python inside it.

A network namespace belongs to a thread, so everything here happens in a short-lived thread of its own: nothing is
forked, and the caller stays where it is. A socket made inside keeps its namespace wherever it is used afterwards.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

FOLDER = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def path(name: str) -> Path:
    """Return where a namespace is registered."""
    return FOLDER / name


def exists(name: str) -> bool:
    """Say whether a namespace of that name is registered."""
    return path(name).exists()


def create(name: str) -> None:
    """Make a namespace with its loopback interface still down; a file left by a crash is taken over."""
    _share_folder()
    place = path(name)
    remove(name)
    place.touch()

    def bind() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), f"make network namespace {name}")
        mount(b"/proc/thread-self/ns/net", place, b"none", _MS_BIND)

    try:
        in_thread(bind)
    except BaseException:
        remove(name)
        raise


def remove(name: str) -> None:
    """Unregister a namespace; it goes away with its last process. One that is not there is no error."""
    place = path(name)
    unmount(place)
    place.unlink(missing_ok=True)


def run(name: str, function: Callable[[], T]) -> T:
    """Call a function inside a namespace and return (or raise) what it does."""

    def enter() -> T:
        descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, _CLONE_NEWNET), f"enter network namespace {name}")
        finally:
            os.close(descriptor)
        return function()

    return in_thread(enter)


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own and return (or raise) what it does."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()  # Ctrl-C: whoever cleans up next must not meet a half-done step that still goes on
        raise
    if errors:
        raise errors[0]
    return results[0]


def mount(source: bytes, target: Path, kind: bytes, flags: int = 0) -> None:
    """Mount a file system, or bind one path to another."""
    result = _libc.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), None)
    _check(result, f"mount {kind.decode()} at {target}")


def unmount(target: Path) -> None:
    """Unmount whatever is there, however often; detached at once, freed when nobody uses it any more."""
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass


def _share_folder() -> None:
    """Make /run/netns a shared mount, as iproute2 does, so that other mount namespaces see what we add."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    flags = ctypes.c_ulong(_MS_SHARED | _MS_REC)
    if _libc.mount(b"", os.fsencode(FOLDER), b"none", flags, None) != 0:
        mount(os.fsencode(FOLDER), FOLDER, b"none", _MS_BIND | _MS_REC)
        mount(b"", FOLDER, b"none", _MS_SHARED | _MS_REC)


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")
