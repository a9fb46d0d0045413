"""ebpfnet simulate judges policies, and says which rule decided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ebpfnet.cli.simulate import _print_table
from ebpfnet.datapath import build
from ebpfnet.simulate.interactive import Session
from ebpfnet.simulate.network import private_network
from ebpfnet.simulate.world import World
from tests.prog.test_simulate import ask

NODES = {"node-a": ("192.168.0.1", "10.0.0.0/24"), "node-b": ("192.168.0.2", "10.0.1.0/24")}
PODS = {"client": ("node-a", "10.0.0.9"), "near": ("node-a", "10.0.0.1"), "far": ("node-b", "10.0.1.1")}


def manifest(kind: str, name: str, api: str = "v1", **more: Any) -> dict[str, Any]:
    labels = {"app": name}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, **more}


def policy(name: str, app: str, annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    found = manifest("NetworkPolicy", name, "networking.k8s.io/v1")
    found["metadata"]["annotations"] = annotations or {}
    return {**found, "spec": {"podSelector": {"matchLabels": {"app": app}}, **spec}}


@pytest.fixture(scope="module")
def session(compiled: build.Object) -> Iterator[Session]:
    with private_network(), World(compiled) as world:
        found = Session(world, [], interactive=True)
        for name, (address, cidr) in NODES.items():
            status: dict[str, Any] = {"addresses": [{"type": "InternalIP", "address": address}]}
            ask(found, {"apply": manifest("Node", name, spec={"podCIDR": cidr}, status=status)})
        for name, (node, address) in PODS.items():
            status = {"phase": "Running", "podIPs": [{"ip": address}]}
            ask(found, {"apply": manifest("Pod", name, spec={"nodeName": node}, status=status)})
        yield found


@pytest.fixture(autouse=True)
def _policies(session: Session) -> Iterator[None]:
    yield
    for name in ("one", "two"):
        ask(session, {"delete": {"kind": "NetworkPolicy", "name": name}})


@pytest.mark.parametrize("server", ["near", "far"])
def test_which_policy_isolates_and_which_rule_allows(session: Session, server: str):
    flow = {"from": "default/client", "to": f"default/{server}", "port": 80}
    assert ask(session, flow)["policies"] == []
    from_client = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80}]}
    assert ask(session, {"apply": policy("one", server, ingress=[from_client])}) == {"ok": True}
    node = PODS[server][0]
    allowed = ask(session, flow)
    rule = "NetworkPolicy default/one, ingress[0]"
    assert (allowed["verdict"], allowed["rule"]) == ("allow", None)
    one, path, text = "NetworkPolicy default/one", "ingress[0].from[0]", "podSelector app=client"
    entry = {"policy": one, "rule": "ingress[0]", "entry": path, "text": text, "ports": ["TCP 80"]}
    matched: dict[str, Any] = {"matched": entry, "also": [], "nearest": []}
    told = {"node": node, "direction": "ingress", "peer": "default/client"}
    assert allowed["policies"] == [
        {**told, "verdict": "allow", "rule": rule, "policies": ["NetworkPolicy default/one"], **matched},
    ]
    denied = ask(session, {**flow, "port": 81})
    isolated = "isolated for ingress by NetworkPolicy default/one"
    assert (denied["verdict"], denied["reason"], denied["rule"]) == ("drop", "POLICY_INGRESS", isolated)
    assert denied["policies"][-1] == {
        **told,
        "verdict": "deny",
        "rule": isolated,
        "policies": ["NetworkPolicy default/one"],
        "matched": None,
        "also": [],
        "nearest": [entry],
    }


def test_egress_is_the_senders(session: Session):
    ask(session, {"apply": policy("one", "client", policyTypes=["Egress"])})
    found = ask(session, {"from": "default/client", "to": "default/far", "port": 80})
    assert (found["reason"], found["rule"]) == ("POLICY_EGRESS", "isolated for egress by NetworkPolicy default/one")
    assert found["policies"][0]["peer"] == "default/far"


def test_what_is_audited_passes_and_is_named(session: Session):
    ask(session, {"apply": policy("two", "near", {"ebpfnet.io/policy-mode": "audit"}, ingress=[])})
    found = ask(session, {"from": "default/client", "to": "default/near", "port": 80})
    assert (found["verdict"], found["rule"]) == ("allow", None)
    (told,) = found["policies"]
    assert (told["verdict"], told["rule"]) == ("audit", "isolated for ingress by NetworkPolicy default/two")


@pytest.mark.parametrize(("port", "verdict"), [(80, "allow"), (81, "drop")])
def test_behind_a_service_the_backend_is_the_peer(session: Session, port: int, verdict: str):
    ports = [{"name": "a", "port": 80, "targetPort": 80}, {"name": "b", "port": 81, "targetPort": 81}]
    spec = {"clusterIP": "10.96.0.1", "ports": ports, "selector": {"app": "far"}}
    ends = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.1.1"]}]}
    there = [{"name": each["name"], "port": each["port"]} for each in ports]
    slice_ = manifest("EndpointSlice", "far-1", "discovery.k8s.io/v1", ports=there, **ends)
    slice_["metadata"]["labels"] = {"kubernetes.io/service-name": "far"}
    for each in (manifest("Service", "far", spec=spec), slice_):
        assert ask(session, {"apply": each}) == {"ok": True}
    to_far = {
        "to": [{"namespaceSelector": {}}, {"podSelector": {"matchLabels": {"app": "far"}}}],
        "ports": [{"port": 80}],
    }
    ask(session, {"apply": policy("one", "client", policyTypes=["Egress"], egress=[to_far])})
    found = ask(session, {"from": "default/client", "to": "10.96.0.1", "port": port})
    (told,) = found["policies"]
    assert (found["verdict"], told["peer"]) == (verdict, "default/far")
    listed = told["nearest"] if verdict == "drop" else [told["matched"], *told["also"]]
    assert [each["entry"] for each in listed] == ["egress[0].to[1]"]
    for kind, name in (("Service", "far"), ("EndpointSlice", "far-1")):
        assert ask(session, {"delete": {"kind": kind, "name": name}}) == {"ok": True}


def test_people_see_what_decided(session: Session, capsys: pytest.CaptureFixture[str]):
    flow = {"from": "default/client", "to": "default/near", "port": 80}
    _print_table([ask(session, flow)])
    assert "DECIDED BY" not in capsys.readouterr().out
    from_client = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80}]}
    ask(session, {"apply": policy("one", "near", ingress=[from_client])})
    _print_table([ask(session, flow), ask(session, {**flow, "port": 81})])
    out = capsys.readouterr().out
    assert "allow by NetworkPolicy default/one, ingress[0].from[0]" in out
    assert "deny: isolated for ingress by NetworkPolicy default/one" in out
