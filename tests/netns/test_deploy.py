"""The DaemonSet's capabilities are enough for an agent, and none of them is too many."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ebpfnet.lab import agents, client
from ebpfnet.lab.cluster import Lab
from tests.netns.conftest import Wait

ROOT = Path(__file__).parents[2]
NODE = "node-a"


def granted() -> list[str]:
    daemonset = yaml.safe_load((ROOT / "deploy/daemonset.yaml").read_text())
    [container] = daemonset["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert (context["privileged"], context["allowPrivilegeEscalation"]) == (False, False)
    assert context["capabilities"]["drop"] == ["ALL"]
    return [name.lower() for name in context["capabilities"]["add"]]


def start(lab: Lab, capabilities: list[str]) -> subprocess.Popen[str]:
    """Start an agent of node-a that can never have more than these capabilities."""
    plan = next(node for node in lab.plan.nodes if node.name == NODE)
    bounds = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    limits = ["setpriv", "--bounding-set", bounds, "--inh-caps", "-all", "--pdeathsig", "KILL"]
    command = lab.node(NODE).command([*limits, *agents.command(lab.places, plan, lab.options)])
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def bare(lab_name: str) -> Iterator[Lab]:
    """Return a lab without an agent on node-a."""
    with Lab.up(lab_name) as lab:
        lab.kill_agent(NODE)
        yield lab


def test_with_exactly_these_an_agent_works(bare: Lab, wait: Wait):
    process = start(bare, granted())
    try:
        wait(lambda: process.poll() is not None or (bare.agent_status(NODE) or {}).get("synced"))
        assert client.tcp(bare.pod("client"), bare.service("web").v4, 80).pod.startswith("default/web")
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said


@pytest.mark.parametrize("without", granted())
def test_with_one_less_it_says_which(bare: Lab, without: str):
    process = start(bare, [name for name in granted() if name != without])
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, f"CAP_{without.upper()}" in said) == (3, True), said
