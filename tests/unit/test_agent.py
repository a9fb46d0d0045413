"""What an agent makes of its flags."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ebpfnet import abi
from ebpfnet.agent import Agent
from ebpfnet.config import AgentConfig
from ebpfnet.exits import NotRoot


def test_agent_that_may_not_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    config = AgentConfig("n", ("lo",), manifests=tmp_path, pins=tmp_path / "pins", run=tmp_path / "run")
    with pytest.raises(NotRoot):
        Agent(config).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("services", [16, abi.TABLES["services"].max_entries, 1_000_000])
def test_there_is_a_name_for_every_service_port_and_pod(services: int):
    specs = AgentConfig("n", ("lo",), max_services=services).specs
    assert specs["names"].max_entries >= specs["services"].max_entries + specs["pods"].max_entries


def test_the_default_sizes_are_the_tables_own():
    assert AgentConfig("n", ("lo",)).specs == abi.TABLES
