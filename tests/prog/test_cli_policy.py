"""``ebpfnet policy`` over real pinned maps, with programs pinned beside them and with or without an agent's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet.datapath import build
from ebpfnet.model.facts import (
    Delete,
    Kind,
    NetworkPolicy,
    Problem,
    Ref,
    Refused,
    Upsert,
)
from tests.prog.commands import call, completions
from tests.prog.policed import FLAGS, Node, answering, brought_up, is_app

APPLY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 192.0.2.128/25}}]
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, compiled: build.Object) -> Iterator[Node]:
    with brought_up(tmp_path_factory.mktemp("policies"), compiled) as found:
        yield found


@pytest.fixture
def alive(node: Node) -> Iterator[Node]:
    with answering(node) as found:
        yield found


def test_list_without_an_agent(node: Node):
    rows = {row["policy"]: row for row in node.json("list")}
    assert set(rows) == {"default/web", "default/quiet", "no-telnet"}
    web = rows["default/web"]
    assert (web["pods"], web["directions"], web["denied"], web["enforced"]) == (1, ["ingress"], 4, None)
    assert [rows[name]["mode"] for name in ("default/web", "default/quiet")] == ["enforce", "audit"]


def test_list_with_an_agent(alive: Node):
    lines = alive.ask("list").stdout.splitlines()
    assert " ".join(lines[0].split()) == "POLICY KIND DIRECTIONS PODS RULES MODE ESTABLISHED ENFORCED HITS"
    assert "default/web NetworkPolicy ingress 1 3 enforce strict yes 4" in [" ".join(line.split()) for line in lines]


def test_get(alive: Node):
    (found,) = alive.json("get", "web")
    assert found["pod_names"] == ["default/web"]
    assert [each["isolated"] for each in found["groups"]] == [["ingress"]]
    by_rule = {(row["rule"], row["verdict"]): row for row in found["decides"]}
    first = by_rule["NetworkPolicy default/web, ingress[0]", "allow"]
    assert first["ports"] == ["TCP 80-90"]
    assert first["peers"][0]["some"] == ["10.0.0.9 (default/client)", "fd00::9 (default/client)"]
    assert by_rule["NetworkPolicy default/web, ingress[1]", "allow"]["peers"][0]["some"] == ["192.0.2.0/24"]
    assert by_rule["NetworkPolicy default/web, ingress[2]", "accept"]["peers"] == []
    deny = by_rule["isolated for ingress by NetworkPolicy default/web", "deny"]
    assert (deny["denied"], deny["ports"]) == (4, ["any"])
    text = alive.ask("get", "web").stdout
    assert text.startswith("NetworkPolicy default/web: enforced\n")
    assert alive.json("get", "no-telnet")[0]["decides"][0]["ports"] == ["TCP 23"]


def test_rules_are_named_where_packets_and_pods_are_listed(node: Node):
    where = ("--pins", str(node.root / "bpf" / "x"), "--run", str(node.root), "-o", "json")
    (sample,) = json.loads(call("drop", "list", "--samples", *where).stdout)
    assert sample["rule"] == "isolated for ingress by NetworkPolicy default/web"
    flows = json.loads(call("flow", "list", "--pod", "client", *where).stdout)
    assert flows[0]["ingress_rule"] == "NetworkPolicy default/web, ingress[0]"
    pods = {row["pod"]: row["isolated"] for row in json.loads(call("pod", "list", *where).stdout)}
    assert pods == {"default/client": "egress", "default/web": "ingress", "default/other": ""}
    found = json.loads(call("pod", "get", "web", *where).stdout)
    assert found[0]["policies"] == ["ClusterNetworkPolicy no-telnet", "NetworkPolicy default/web"]


def test_names_are_completed(node: Node):
    where = ("--pins", str(node.root / "bpf" / "x"))
    assert completions("policy", "get", *where, "default/") == ["default/quiet", "default/web"]
    assert completions("policy", "wait", *where, "no") == ["no-telnet"]


def test_get_of_what_is_not_there(node: Node):
    done = node.ask("get", "wed", check=False)
    assert (done.returncode, "did you mean default/web?" in done.stderr) == (1, True)


def test_diff(alive: Node, tmp_path: Path):
    path = tmp_path / "new.yaml"
    path.write_text(APPLY)
    (found,) = alive.json("diff", "-f", str(path))
    assert [found[name] for name in ("flows", "cut", "left", "opened")] == [2, 2, 0, 1]
    changes = {(row["effect"], row["source"]): row for row in found["changes"]}
    row = changes["cut", "10.0.0.9:40000 (default/client)"]
    rule, denied = "NetworkPolicy default/web, ingress[0]", "isolated for ingress by NetworkPolicy default/web"
    assert (row["now"], row["then"]) == (rule, denied)
    assert changes["opened", "192.0.2.200:40000"]["then"] == "NetworkPolicy default/web, ingress[0]"
    assert "2 open connections, 2 would be cut" in alive.ask("diff", "-f", str(path)).stdout


def test_diff_honours_graceful(alive: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FLAGS, "graceful", True)
    path = tmp_path / "new.yaml"
    path.write_text(APPLY)
    (found,) = alive.json("diff", "-f", str(path))
    assert [found[name] for name in ("cut", "left", "opened")] == [0, 2, 1]
    path.write_text(APPLY.replace("default}", "default, annotations: {ebpfnet.io/established: strict}}"))
    (found,) = alive.json("diff", "-f", str(path))
    assert [found[name] for name in ("cut", "left", "opened")] == [2, 0, 1]


def test_diff_of_what_would_be_deleted(alive: Node):
    (found,) = alive.json("diff", "--without", "web")
    assert [found[name] for name in ("cut", "left", "opened")] == [0, 0, 1]


def test_diff_needs_an_agent(node: Node, tmp_path: Path):
    path = tmp_path / "new.yaml"
    path.write_text(APPLY)
    assert node.ask("diff", "-f", str(path), check=False).returncode == 8


def test_wait(alive: Node):
    assert alive.ask("wait", "web", "--timeout", "0").returncode == 0
    assert alive.ask("wait", "web", "--timeout", "0", "--generation", "3").returncode == 0
    late = alive.ask("wait", "web", "--timeout", "0", "--generation", "4", check=False)
    assert (late.returncode, "generation 3, not 4" in late.stderr) == (8, True)
    assert "has not seen it" in alive.ask("wait", "nix", "--timeout", "0", check=False).stderr


def test_a_refused_policy_is_named(alive: Node):
    ref = Ref(Kind.NETWORK_POLICY, "default", "bad")
    problem = Problem(ref, "spec.ingress[0].from[0].ipBlock.cidr", "no CIDR")
    bad = NetworkPolicy(ref, is_app("other"), (), (), refused=True)
    alive.reconciler.apply([Upsert(bad), Refused(problem, partial=True)])
    try:
        row = {row["policy"]: row for row in alive.json("list")}["default/bad"]
        assert (row["enforced"], row["pods"]) == ("refused", 1)
        assert row["problems"] == ["spec.ingress[0].from[0].ipBlock.cidr: no CIDR"]
        assert "refused: spec" in alive.ask("wait", "bad", "--timeout", "0", check=False).stderr
        assert "default/bad: REFUSED" in alive.ask("get", "bad").stdout
    finally:
        alive.reconciler.apply([Delete(ref)])
