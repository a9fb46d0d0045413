"""Network namespaces without names: a namespace lives as long as its descriptor or a process in it, so whatever way
this process ends, the kernel takes namespaces, veths, rules and filters down."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def _enter(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A network namespace with its loopback up. Of this process only the calling thread enters it."""

    def __init__(self) -> None:
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if LIBC.unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare: network namespaces need root")
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.call(["ip", "link", "set", "lo", "up"])
        finally:
            _enter(outside)
            os.close(outside)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the namespace for the length of a block; processes started there stay in it."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _enter(self.fd)
        try:
            yield
        finally:
            _enter(outside)
            os.close(outside)

    def call(self, command: Sequence[str], text: str | None = None, pass_fds: Sequence[int] = ()) -> str:
        """Run a command in the namespace; raises ``RuntimeError`` with its own words when it fails."""
        with self.entered():
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, pass_fds=pass_fds)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def set(self, name: str, value: object) -> None:
        """Set a sysctl of the namespace (``net.`` is implied)."""
        with self.entered():
            (Path("/proc/sys/net") / name.replace(".", "/")).write_text(f"{value}\n")

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a process in the namespace."""
        with self.entered():
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        """Let go; the namespace ends with its last process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
