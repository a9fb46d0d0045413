"""``ebpfnet policy`` over real pinned maps, with programs pinned beside them and with or without an agent's answers."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ebpfnet import abi, policing, status
from ebpfnet.datapath import build, load
from ebpfnet.exits import NotRunning
from ebpfnet.maps import kernel, pins
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Delete,
    Fact,
    IPBlock,
    Kind,
    Namespace,
    NetworkPolicy,
    PodPeer,
    PolicyPort,
    PolicyRule,
    Problem,
    Ref,
    Refused,
    Synced,
    Tier,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import TCP, pod, wire
from tests.prog.commands import SMALL, call, completions, packed

EVERYBODY = ipaddress.ip_network("0.0.0.0/0")
OFFICE = IPBlock(ipaddress.ip_network("192.0.2.0/24"), (ipaddress.ip_network("192.0.2.128/25"),))
APPLY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 192.0.2.128/25}}]
"""


FLAGS = {"graceful": False}
"""Of the agent."""


def is_app(name: str) -> Selector:
    return Selector((Requirement("app", frozenset({name})),))


def policy(name: str, selected: Selector, **fields: Any) -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", name), selected, **fields)


WEB = policy(
    "web",
    is_app("web"),
    ingress=(
        PolicyRule((PodPeer(is_app("client")),), (PolicyPort(TCP, 80, 90),)),
        PolicyRule((OFFICE,)),
        PolicyRule((PodPeer(is_app("nobody")),)),
    ),
    generation=3,
)
QUIET = policy("quiet", is_app("client"), egress=(PolicyRule((PodPeer(is_app("web")),)),), audited=True)
ADMIN = ClusterNetworkPolicy(
    Ref(Kind.CLUSTER_NETWORK_POLICY, "", "no-telnet"),
    Tier.ADMIN,
    1,
    EVERYTHING,
    is_app("web"),
    ingress=(ClusterRule("telnet", Action.DENY, (PodPeer(EVERYTHING, EVERYTHING),), (PolicyPort(TCP, 23, 23),)),),
)


class Node(NamedTuple):
    """A node with its tables, programs, and what would be an agent's."""

    root: Path
    tables: dict[str, kernel.KernelTable]
    reconciler: Reconciler

    def ask(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return call("policy", *words, "--pins", str(self.root / "bpf" / "x"), "--run", str(self.root), check=check)

    def json(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "-o", "json").stdout)


def labelled(name: str, app: str, *addresses: str) -> Fact:
    return dataclasses.replace(pod(name, *addresses), labels=(("app", app),))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, compiled: build.Object) -> Iterator[Node]:
    root = tmp_path_factory.mktemp("policies")
    (root / "bpf").mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", root / "bpf"], check=True)
    tables = pins.create_or_open_all(root / "bpf" / "x", SMALL)
    programs = load.load(compiled, tables)
    for program in programs.values():
        program.pin(root / "bpf" / "x" / program.name)
        program.close()
    reconciler = Reconciler(tables, "node-a")
    facts: list[Fact] = [
        Namespace(Ref(Kind.NAMESPACE, "", "default"), ()),
        labelled("client", "client", "10.0.0.9", "fd00::9"),
        labelled("web", "web", "10.0.0.1", "fd00::1"),
        labelled("other", "other", "10.0.0.2", "fd00::2"),
        WEB,
        QUIET,
        ADMIN,
    ]
    reconciler.apply([*map(Upsert, facts)])
    reconciler.set_wires({"default/client": wire(5), "default/web": wire(6), "default/other": wire(7)})
    reconciler.apply([Synced()])
    _traffic(tables)
    yield Node(root, tables, reconciler)
    pins.close_all(tables)
    subprocess.run(["umount", "-l", root / "bpf"], check=True)


def _traffic(tables: dict[str, kernel.KernelTable]) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    none = abi.Wire(0, bytes(6))
    for source, port, flags in (("10.0.0.9", 80, 0), ("192.0.2.7", 443, 0), ("192.168.0.1", 80, abi.FlowFlag.HOST)):
        key = abi.Tuple(packed(source), packed("10.0.0.1"), 40000, port, TCP)
        state, rule = abi.FlowState.ESTABLISHED, abi.identify("rule NetworkPolicy default/web ingress 0")
        flow = abi.Flow(key, now, 0, 0, none, wire(6), state, abi.FlowFlag(flags), 2, ingress_rule=rule)
        tables["flows"].put(key.pack(), flow.pack())
    key = abi.Tuple(packed("192.0.2.200"), packed("10.0.0.1"), 40000, 80, TCP)
    isolated = abi.identify("isolated ingress default/web")
    sample = abi.DropSample(1, now, key, 5, 60, abi.Hook.FROM_NETWORK, abi.DropReason.POLICY_INGRESS, isolated)
    tables["drop_samples"].put((1).to_bytes(4, "little"), sample.pack())
    empty = bytes(tables["rule_hits"].value_size - abi.Hits.size())
    tables["rule_hits"].put(isolated.to_bytes(8, "little"), abi.Hits(0, 4, 0).pack() + empty)


@pytest.fixture
def alive(node: Node) -> Iterator[Node]:
    """Return the node while its agent answers."""
    stop = threading.Event()
    answers = policing.answers(threading.Lock(), node.reconciler, False)
    answers = {**answers, "facts": lambda: policing.facts(policing.hold(node.reconciler), graceful=FLAGS["graceful"])}
    agent = threading.Thread(target=status.serve, args=(node.root, answers, stop))
    agent.start()
    while True:
        try:
            status.ask(node.root, "ping")
            break
        except NotRunning:
            time.sleep(0.01)
    yield node
    stop.set()
    agent.join()


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


@pytest.mark.parametrize(
    ("source", "to", "port", "ways"),
    [
        ("client", "web", "80", [("allow", []), ("allow", ["NetworkPolicy default/web"])]),
        ("client", "web", "91", [("audit", None), ("deny", ["NetworkPolicy default/web"])]),
        ("client", "web", "23", [("audit", None), ("deny", ["ClusterNetworkPolicy no-telnet"])]),
        ("client", "other", "80", [("audit", ["NetworkPolicy default/quiet"]), ("allow", [])]),
        ("192.0.2.7", "web", "1", [("allow", []), ("allow", ["NetworkPolicy default/web"])]),
        ("192.0.2.200", "web", "1", [("allow", []), ("deny", ["NetworkPolicy default/web"])]),
        ("2001:db8::1", "web", "80", [("allow", []), ("deny", ["NetworkPolicy default/web"])]),
    ],
)
def test_explain(node: Node, tmp_path_factory, source: str, to: str, port: str, ways: list[tuple[str, Any]]):
    cache = tmp_path_factory.getbasetemp() / "cache"
    rows = node.json("explain", "--from", source, "--to", to, "--port", port, "--cache", str(cache))
    assert len(rows) == (2 if "." in source or ":" in source else 4)
    for row, (verdict, policies) in zip(rows, ways * 2, strict=False):
        if policies is not None:
            assert (row["verdict"], row["policies"]) == (verdict, policies), row
        inside = row["of"].startswith("default/")
        assert row["confirmed"] is (True if inside else None), row


def test_explain_leaves_nothing(node: Node, tmp_path_factory):
    def state() -> list[dict[bytes, bytes]]:
        return [dict(node.tables[name].items()) for name in ("flows", "rule_hits", "drops", "drop_samples", "pods")]

    before = state()
    cache = tmp_path_factory.getbasetemp() / "cache"
    done = node.ask("explain", "--from", "192.0.2.200", "--to", "web", "--port", "80", "--cache", str(cache))
    assert "confirmed: from_network drops it" in done.stdout
    assert "isolated for ingress by NetworkPolicy default/web" in done.stdout
    assert state() == before


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
