"""What an agent makes of its flags."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ebpfnet.agent import Agent, AgentConfig
from ebpfnet.exits import NotRoot


def test_agent_that_may_not_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    config = AgentConfig("n", ("lo",), tmp_path, pins=tmp_path / "pins", run=tmp_path / "run")
    with pytest.raises(NotRoot):
        Agent(config).run()
    assert list(tmp_path.iterdir()) == []
