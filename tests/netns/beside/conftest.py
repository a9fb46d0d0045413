"""Labs whose pods another CNI plugin wires, one kind after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet.lab.cluster import Lab
from tests.netns.beside import plugins
from tests.netns.conftest import PATIENCE


@pytest.fixture(scope="module", params=["bridge", "ptp"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the plugin that wires the pods."""
    return str(request.param)


@pytest.fixture(scope="module")
def lab(kind: str, manifests: Path) -> Iterator[Lab]:
    """Return a lab that a module's tests share."""
    with plugins.lab(f"t{os.getpid()}-{kind}", manifests, kind, timeout=PATIENCE) as up:
        yield up


@pytest.fixture
def bare(kind: str, manifests: Path, lab_name: str) -> Iterator[Lab]:
    """Return a lab without agents."""
    with plugins.lab(lab_name, manifests, kind, agents=False, timeout=PATIENCE) as up:
        yield up
