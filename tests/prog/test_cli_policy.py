"""``ebpfnet policy`` over real pinned maps, with programs pinned beside them and with or without an agent's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet.datapath import build
from ebpfnet.model.facts import (
    Delete,
    Kind,
    NetworkPolicy,
    PodPeer,
    PolicyPort,
    PolicyRule,
    Problem,
    Ref,
    Refused,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING
from tests.cluster import TCP, settle
from tests.prog.commands import call, completions
from tests.prog.policed import FLAGS, Node, answering, brought_up, is_app, policy

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
    assert web["rules"] == 2  # that decide about anybody
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
    denies = [row for row in found["decides"] if row["verdict"] == "deny"]
    assert [(row["denied"], row["ports"]) for row in denies] == [(4, ["any"]), (4, ["any other"])]
    assert first["means"] == [{"entry": "ingress[0].from[0]", "text": "podSelector app=client"}]
    assert alive.json("get", "no-telnet")[0]["decides"][0]["ports"] == ["TCP 23"]


def table(text: str) -> list[list[str]]:
    """Return the cells of a table below some lines of text."""
    lines = text.splitlines()
    lines = lines[next(at for at, line in enumerate(lines) if line.startswith("RULE")) :]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_get_for_people(alive: Node):
    text = alive.ask("get", "web").stdout
    assert text.splitlines()[:3] == [
        "NetworkPolicy default/web: enforced",
        "  ingress of default/web (podSelector app=web)",
        "  mode enforce, established connections strict",
    ]
    client = "10.0.0.9 (default/client), fd00::9 (default/client)"
    rows = {(row[0], row[3]): row for row in table(text)[1:]}
    first = rows["ingress[0]", "TCP 80-90"]
    assert [*first[1:4], first[4].partition(": ")[2]] == ["allow", "podSelector app=client", "TCP 80-90", client]
    assert rows["ingress[2]", "any"][1:5] == [
        "accept",
        "podSelector app=nobody",
        "any",
        "(nobody, or others come first)",
    ]
    assert rows["isolated for ingress", "any"][4:] == ["everybody else", "0", "4", "0"]
    assert rows["isolated for ingress", "any other"][5:] == ["-", "-", "-"]  # a rule's hits stand there once
    telnet = alive.ask("get", "no-telnet").stdout
    assert telnet.startswith("ClusterNetworkPolicy no-telnet (Admin, priority 1): enforced\n")


def test_get_of_an_audited_policy_says_whom_its_rules_mean(alive: Node):
    rows = {row[0]: row for row in table(alive.ask("get", "quiet").stdout)}
    assert rows["egress[0]"][1:5] == ["accept", "podSelector app=web", "any", "(nobody: it is audited)"]
    assert rows["isolated for egress"][1:5] == ["audit", "-", "any", "everybody else"]


def test_get_of_several_groups_says_what_is_the_same_once(alive: Node):
    every = policy("every", EVERYTHING, ingress=(PolicyRule((PodPeer(is_app("client")),), (PolicyPort(TCP, 1, 1),)),))
    many = [policy(f"many-{each:060}", is_app("other"), ingress=()) for each in range(20)]
    alive.reconciler.apply([*map(Upsert, (every, *many))])
    try:
        (found,) = alive.json("get", "every")
        assert len(found["groups"]) == 3
        rows = table(alive.ask("get", "every").stdout)
        assert [row[0] for row in rows].count("ingress[0]") == 1
        mine = {row[0]: row for row in rows if row[0].startswith("isolated")}
        assert mine["isolated for ingress, with default/web"][5] == "default/web"
        (last,) = alive.json("get", many[-1].ref.name)
        assert [row["rule"].partition(" by ")[0] for row in last["decides"]] == ["isolated for ingress"] * 2
        listed = [f"NetworkPolicy default/{name}" for name in ("every", *(each.ref.name for each in many))]
        assert last["decides"][0]["policies"] == sorted(listed)
    finally:
        alive.reconciler.apply([*map(Delete, (every.ref, *(each.ref for each in many)))])
        settle(alive.reconciler, alive.clock)


def test_rules_are_named_where_packets_and_pods_are_listed(node: Node):
    where = ("--pins", str(node.root / "bpf" / "x"), "--run", str(node.root), "-o", "json")
    (sample,) = json.loads(call("drop", "list", "--samples", *where).stdout)
    assert sample["rule"] == "isolated for ingress by NetworkPolicy default/web"
    flows = json.loads(call("flow", "list", "--pod", "client", *where).stdout)
    assert flows[0]["ingress_rule"] == "NetworkPolicy default/web, ingress[0]"
    pods = {row["pod"]: row["isolated"] for row in json.loads(call("pod", "list", *where).stdout)}
    assert pods == {"default/client": "egress (audited)", "default/web": "ingress", "default/other": ""}
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


def test_one_that_is_enforced_but_for_an_annotation_is_not_refused(alive: Node):
    text = "'dry' is not enforce or audit; it is enforced"
    problem = Problem(Ref(Kind.NETWORK_POLICY, "default", "typo"), "metadata.annotations[ebpfnet.io/policy-mode]", text)
    alive.reconciler.apply([Upsert(policy("typo", is_app("other"), ingress=())), Refused(problem, partial=True)])
    try:
        row = {row["policy"]: row for row in alive.json("list")}["default/typo"]
        assert (row["enforced"], len(row["problems"])) == ("in part", 1)
        waited = alive.ask("wait", "typo", "--timeout", "0")
        assert (waited.returncode, text in waited.stderr) == (0, True)
        assert alive.ask("get", "typo").stdout.startswith("NetworkPolicy default/typo: enforced in part\n")
    finally:
        alive.reconciler.apply([Delete(problem.ref)])
        settle(alive.reconciler, alive.clock)


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
