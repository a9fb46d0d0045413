"""The four programs over tables of their own, with the small cluster of ``tests/packets.py`` in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet.datapath import build
from ebpfnet.simulate.network import private_network
from tests import cgroups, leftovers, packets
from tests.prog import commands
from tests.prog.loaded import Datapath, opened
from tests.prog.policies import Policies
from tests.prog.uplink import Uplink, connect

# An LRU table of few entries may evict what it got last (before Linux 6.16): so fragments are many.
SIZES = {
    "services": 64,
    "sets": 64,
    "members": 64,
    "ranges": 64,
    "blocks": 64,
    "affinity": 1024,
    "usage": 1024,
    "slots": 256,
    "pods": 64,
    "flows": 4096,
    "fragments": 2048,
    "names": 64,
    "namespaces": 1024,
    "sockets": 2048,
}


def needs_root() -> None:
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("EBPFNET_NO_SKIP") else pytest.skip)("programs need root to be loaded")


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> None:
    needs_root()
    leftovers.remove()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> build.Object:
    needs_root()
    return build.compiled(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def loaded(compiled: build.Object) -> Iterator[Datapath]:
    with opened(compiled, SIZES) as found:
        yield found


@pytest.fixture
def datapath(loaded: Datapath) -> Iterator[Datapath]:
    loaded.clear()
    with private_network():
        yield loaded


@pytest.fixture(params=packets.FAMILIES, ids=["v4", "v6"])
def ends(request: pytest.FixtureRequest) -> packets.Ends:
    found: packets.Ends = request.param
    return found


@pytest.fixture
def uplink(datapath: Datapath, ends: packets.Ends) -> Uplink:
    """Return the programs on a node with an uplink."""
    return connect(datapath, ends)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a node's pinned tables, for the command line."""
    needs_root()
    with commands.tables_in(tmp_path_factory.mktemp("cli")) as root:
        yield root


@pytest.fixture
def group(loaded: Datapath) -> Iterator[Path]:
    """Return a new cgroup."""
    with cgroups.made_or_skipped() as path:
        yield path


@pytest.fixture
def policies(datapath: Datapath) -> Policies:
    """Return the tables of policies, empty."""
    return Policies(datapath)
