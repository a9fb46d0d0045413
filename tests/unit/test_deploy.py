"""What is shipped for operators: it parses, and it speaks of metrics and flags that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ebpfnet.cli.agent import agent
from ebpfnet.operate.metrics import Metrics
from ebpfnet.operate.serve import Request
from ebpfnet.operate.snapshot import Attached, Conntrack, Decided, Packets, Refusal, Snapshot, TableUse, Watch

DEPLOY = Path(__file__).parents[2] / "deploy"
SNAPSHOT = Snapshot(
    tables=(TableUse("flows", 1, 2),),
    forwarded=(Packets("from_pod", "pod", 1),),
    dropped=(Packets("from_pod", "truncated", 1),),
    conntrack=Conntrack(1, 1, 1, 0.1),
    watches=(Watch("services", 0.1, 0, 0, 0),),
    attached=(Attached("pod", "attached", 1),),
    refused=(Refusal("Service", "spec"),),
    decided=(Decided("NetworkPolicy a/b", "denied", 1),),
)


@pytest.fixture
def served() -> dict[str, set[str]]:
    """Return the label names of every sample that an agent shows."""
    metrics = Metrics(lambda: SNAPSHOT, version="1", layout=1)
    metrics.synced(0.1, 1.0)
    page = metrics.page(Request("/metrics", "")).body.decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_rules_and_panels_speak_of_metrics_that_there_are(served: dict[str, set[str]]):
    named = {name for text in expressions() for name in re.findall(r"\b(?:ebpfnet|kubeproxy|process)_\w+", text)}
    assert named
    assert named <= served.keys()


def test_they_group_by_labels_that_there_are(served: dict[str, set[str]]):
    for text in expressions():
        wanted = {label for group in re.findall(r"by \(([^)]*)\)", text) for label in group.replace(" ", "").split(",")}
        [name] = set(re.findall(r"\b(?:ebpfnet|kubeproxy|process)_\w+", text)) or {"up"}
        assert wanted - {"node"} <= served.get(name, set()), text


def test_the_agent_has_the_flags_of_the_daemonset():
    daemonset = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())
    [container] = daemonset["spec"]["template"]["spec"]["containers"]
    verb, *flags = container["args"]
    assert verb == "agent"
    known = {option for parameter in agent.params for option in parameter.opts}
    assert {flag.partition("=")[0] for flag in flags} <= known


def test_every_capability_has_its_reason():
    lines = (DEPLOY / "daemonset.yaml").read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "add:") + 1
    added = [line.strip() for line in lines[start:] if line.strip().startswith("- ")][:3]
    assert all(" # " in line for line in added)
    assert [line.split()[1] for line in added] == ["BPF", "PERFMON", "NET_ADMIN"]
