"""A cgroup of a test's own, and what is needed to be in it. It goes with the test's process, however that ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ebpfnet.datapath import cgroup

NAME = "ebpfnet-test-{pid}-{number}"
# Standard input ends with the test's process; whoever is left inside ends then, and the directory as soon as they have.
AFTERWARDS = 'cat; echo 1 > "$0/cgroup.kill"; while [ -d "$0" ] && ! rmdir "$0" 2>/dev/null; do :; done'


@contextmanager
def made() -> Iterator[Path]:
    """Yield a new, empty cgroup; raises ``WrongCgroup`` where none can be."""
    root = cgroup.find(cgroup.ROOT)
    taken = {path.name for path in root.iterdir()}
    pid = os.getpid()
    path = next(root / name for number in range(1000) if (name := NAME.format(pid=pid, number=number)) not in taken)
    path.mkdir()
    with subprocess.Popen(["sh", "-c", AFTERWARDS, path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
        yield path
    assert not path.exists()


@contextmanager
def made_or_skipped() -> Iterator[Path]:
    """Yield a new cgroup; where there can be none, the test is skipped with the reason."""
    try:
        cgroup.find(cgroup.ROOT)
    except cgroup.WrongCgroup as error:
        pytest.skip(str(error))
    with made() as path:
        yield path


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Have this process in a cgroup for the length of a block: its new sockets belong there for good."""
    (unified,) = (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    home = cgroup.find(cgroup.ROOT) / unified.removeprefix("0::/")
    (path / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
