"""A lab cluster for the whole run, of a name that no other run uses; what a killed run left is removed first."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ebpfnet import abi
from ebpfnet.lab import state
from ebpfnet.lab.cluster import Inside, Lab, down
from tests import leftovers
from tests.netns import objects
from tests.netns.kube import Kube

if TYPE_CHECKING:
    from tests.netns.policies import World

Wait = Callable[[Callable[[], object]], None]
PATIENCE = float(os.environ.get("EBPFNET_LAB_TIMEOUT", "60"))
"""Seconds for a lab to come up; an emulated machine needs more."""


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    for name in state.names():
        if (owner := re.fullmatch(r"t(\d+)-\w+", name)) and not Path(f"/proc/{owner[1]}").exists():
            down(name)
    leftovers.remove()


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> Iterator[None]:
    """Count what the run keeps open: maps that no test closes are memory of the kernel until the run ends."""
    before = _descriptors_open()
    yield
    kept = _descriptors_open() - before
    assert kept < len(abi.TABLES), f"the tests left {kept} descriptors open"


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's objects and ours."""
    return objects.write(tmp_path_factory.mktemp("manifests"))


@pytest.fixture(scope="session")
def lab(manifests: Path) -> Iterator[Lab]:
    """Return the lab that all tests share: two nodes, dual stack."""
    yield from _lab("main", manifests, None)


@pytest.fixture(scope="module")
def narrow(manifests: Path) -> Iterator[Lab]:
    """Return a lab whose network between the nodes carries less than pods send."""
    yield from _lab("narrow", manifests, 1400)


@pytest.fixture(scope="session")
def policed(tmp_path_factory: pytest.TempPathFactory, wait: Wait) -> Iterator[World]:
    """Return the lab that the tests of policies share."""
    from tests.netns import policies

    with policies.world(f"t{os.getpid()}-policies", tmp_path_factory.mktemp("policies"), wait) as found:
        yield found


@pytest.fixture
def lab_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the name of a lab of the test's own, which is down before and after."""
    name = f"t{os.getpid()}-{abs(hash(request.node.name)) % 10**8}"
    yield name
    down(name)


@pytest.fixture
def kube(lab_name: str, manifests: Path, tmp_path: Path) -> Iterator[Kube]:
    """Return a lab with the tests' objects, followed through API servers."""
    with Kube.up(lab_name, manifests, tmp_path) as found:
        yield found


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> int:
    """Return the address family that the test uses."""
    return int(request.param)


@pytest.fixture(params=["near", "far"])
def distance(request: pytest.FixtureRequest) -> str:
    """Say whether the other pod is on the client's node."""
    return str(request.param)


@pytest.fixture
def caller(lab: Lab) -> Inside:
    """Return the pod that tests call from; it is on node-a."""
    return lab.pod("client")


@pytest.fixture(scope="session")
def wait() -> Wait:
    """Return a function that waits until a condition holds."""

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not so after {2 * PATIENCE} s: {condition}"
            time.sleep(0.02)

    return until


def _descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _lab(what: str, manifests: Path, uplink_mtu: int | None) -> Iterator[Lab]:
    name = f"t{os.getpid()}-{what}"
    try:
        yield Lab.up(name, manifests, uplink_mtu=uplink_mtu, timeout=PATIENCE)
    finally:
        down(name)
