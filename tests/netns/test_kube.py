"""Agents that follow an API server: services work, outages and deaths cost nothing, RBAC is enough."""

from __future__ import annotations

import json
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ebpfnet.lab import client
from tests.netns import objects
from tests.netns.conftest import Wait
from tests.netns.kube import NODES, Kube
from tests.netns.test_restart import datagrams, new_connections, one_connection, progress, running

ROOT = Path(__file__).parents[2]


def slice_of(service: str, family: str = "ipv4") -> Callable[[Kube], dict[str, Any]]:
    return lambda kube: kube.store.get("EndpointSlice", "default", f"{service}-{family}") or {}


def test_a_cluster_through_its_api_server(kube: Kube, wait: Wait):
    caller = kube.lab.pod("client")
    for family in (socket.AF_INET, socket.AF_INET6):
        for service in ("near", "far"):
            assert client.tcp(caller, kube.lab.service(service).of(family), 80).pod.startswith("default/web-")
            assert client.udp(caller, kube.lab.service(f"{service}-dns").of(family), 53).pod.startswith("default/dns-")
    piece = slice_of("near")(kube)
    piece["endpoints"] = [{"addresses": [kube.lab.pod("web-b").v4]}]
    kube.put(piece)
    address = kube.lab.service("near").v4
    wait(lambda: client.tcp(caller, address, 80).pod == "default/web-b")
    kube.store.delete("Service", "default", "near")
    wait(kube.equal)


def test_what_is_asked_is_what_rbac_allows(kube: Kube, wait: Wait):
    """The rules of deploy/rbac.yaml cover every request that an agent makes, and none is for nothing."""
    broken = kube.store.get("Service", "default", "near") or {}
    broken["spec"]["ports"][0]["port"] = 70000
    kube.put(broken)
    kube.put(policy := _policy({"podSelector": {}}))
    wait(
        lambda: (
            kube.store.objects("Event")
            and all(_watch(kube, node, "peers").get("state") == "watching" for node in NODES)
        ),
    )
    kube.store.delete("NetworkPolicy", "default", policy["metadata"]["name"])
    seen = {(verb, group, resource) for each in kube.servers.values() for verb, group, resource, _ in each.log.seen()}
    role = next(
        each for each in yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()) if each["kind"] == "ClusterRole"
    )
    allowed = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert seen <= allowed
    # A streaming list is a watch: list is asked for where the server has none. A patch follows when an Event repeats.
    unasked = {each for each in allowed - seen if each[0] != "list"}
    assert unasked <= {("patch", "events.k8s.io", "events"), *(each for each in allowed if each[0] == "get")}


def test_other_nodes_pods_are_followed_when_a_policy_means_some(kube: Kube, wait: Wait):
    kube.put(_policy({"ipBlock": {"cidr": "10.0.0.0/8"}}))
    wait(lambda: all(_watch(kube, node, "networkpolicies").get("objects") for node in NODES))
    assert {_watch(kube, node, "peers")["state"] for node in NODES} == {"not needed"}
    kube.put(_policy({"podSelector": {}}))
    wait(lambda: all(_watch(kube, node, "peers").get("state") == "watching" for node in NODES))
    wait(kube.equal)


def _policy(peer: dict[str, Any]) -> dict[str, Any]:
    """Return a policy that selects every pod."""
    meta = {"name": "some", "namespace": "default"}
    spec = {"podSelector": {}, "ingress": [{"from": [peer]}]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def _watch(kube: Kube, node: str, resource: str) -> dict[str, Any]:
    status = kube.lab.agent_status(node) or {}
    return next((each for each in status.get("watch", []) if each["resource"] == resource), {})


def test_a_refused_object_becomes_an_event_and_a_metric(kube: Kube, wait: Wait):
    broken = kube.store.get("Service", "default", "near") or {}
    broken["spec"]["ports"][0]["port"] = 70000
    kube.put(broken)
    wait(lambda: kube.store.objects("Event"))
    found = kube.store.objects("Event")[0]
    assert found["regarding"]["name"] == "near"
    assert found["regarding"]["uid"] == (kube.store.get("Service", "default", "near") or {})["metadata"].get("uid", "")
    assert "spec.ports[0].port" in found["note"]
    wait(lambda: 'field="spec.ports[].port",kind="Service"' in kube.metrics("node-a"))
    assert client.tcp(kube.lab.pod("client"), kube.lab.service("near").v4, 80).pod == "default/web-a"


def test_a_node_that_leaves_says_so(kube: Kube, wait: Wait):
    assert json.loads(kube.metrics("node-a", ":10256/healthz"))["nodeEligible"] is True
    node = kube.store.get("Node", "", "node-a") or {}
    node["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    kube.put(node)
    wait(lambda: json.loads(kube.metrics("node-a", ":10256/healthz"))["nodeEligible"] is False)
    assert json.loads(kube.metrics("node-a", ":10256/livez"))["healthy"] is True


def test_an_outage_and_a_death_in_it_change_nothing(kube: Kube, wait: Wait):
    caller, address = kube.lab.pod("client"), kube.lab.service("near").v4
    before = {node: kube.have(node) for node in NODES}
    with running([(new_connections, (caller, address, 80)), (one_connection, (caller, address, 80))]) as results:
        kube.stop_servers()
        progress(results, wait)
        for node in NODES:
            kube.lab.kill_agent(node, signal.SIGKILL)
            kube.lab.start_agent(node)
        progress(results, wait)
        assert {node: kube.have(node) for node in NODES} == before
        wait(lambda: all(_problem(kube, node, "no API server answers") for node in NODES))
        kube.start_servers()
        kube.lab.wait_synced()
        progress(results, wait)
    assert [result.failures for result in results] == [[], []]
    assert {node: kube.have(node) for node in NODES} == before
    assert [(kube.lab.agent_status(node) or {})["writes"] for node in NODES] == [0, 0]


def _problem(kube: Kube, node: str, text: str) -> bool:
    status = kube.lab.agent_status(node) or {}
    return any(text in each["reason"] for each in status.get("problems", []))


def test_killed_at_random_moments_under_churn(kube: Kube, wait: Wait):
    """Services come and go, endpoints change, watches break, agents die: what lives is not touched, and in the end the
    tables hold what the cluster says.
    """
    caller = kube.lab.pod("client")
    dice = random.Random(20261121)
    loads = [
        (new_connections, (caller, kube.lab.service("near").v4, 80)),
        (one_connection, (caller, kube.lab.service("far").v6, 80)),
        (datagrams, (caller, kube.lab.service("far-dns").v4, 53)),
    ]
    with running(loads) as results:
        for step in range(60):
            churn(kube, dice, step)
            if step % 10 == 5:
                node = dice.choice(NODES)
                kube.lab.kill_agent(node, signal.SIGKILL)
                churn(kube, dice, step + 1000)
                kube.lab.start_agent(node)
            if step % 20 == 15:
                kube.servers[dice.choice(NODES)].drop_watches()
        kube.lab.wait_synced()
        progress(results, wait)
        wait(kube.equal)
    assert [result.failures for result in results] == [[], [], []]


def churn(kube: Kube, dice: random.Random, step: int) -> None:
    """Do a few random things to services that carry no load."""
    for number in range(4):
        index = dice.randrange(8)
        names = dice.sample(["web-a", "web-b", "dns-a", "dns-b"], dice.randrange(4))
        if dice.random() < 0.2:
            for piece in objects.service(f"busy-{index}", 100 + index, [("http", "TCP", 80, 8080)], names):
                kube.store.delete(piece["kind"], "default", piece["metadata"]["name"])
        else:
            ports = [("http", "TCP", 80 + dice.randrange(2), 8080 + (step + number) % 3)]
            for piece in objects.service(f"busy-{index}", 100 + index, ports, names):
                kube.put(piece)
