"""Ports of pods: those of containers that live as long as the pod, and of other nodes' pods those with a name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ebpfnet.model.facts import Kind, Peer, Pod, PodPort
from ebpfnet.watch.decode import decode, decode_bytes
from ebpfnet.watch.fields import Decoded

WEB: dict[str, Any] = {"name": "web", "containerPort": 80}
DNS: dict[str, Any] = {"name": "dns", "containerPort": 53, "protocol": "UDP"}
PLAIN: dict[str, Any] = {"containerPort": 9}
SIDECAR: dict[str, Any] = {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 7}]}


def manifest(*containers: Any, init: Any = None, ip: str = "10.2.0.1", **spec: Any) -> dict[str, Any]:
    spec = {"nodeName": "b", "containers": list(containers), "initContainers": init} | spec
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": spec, "status": {"podIPs": [{"ip": ip}]}}


def peer(item: dict[str, Any]) -> Decoded:
    return decode_bytes(Kind.PEER, json.dumps(item).encode())


def ports(item: dict[str, Any]) -> tuple[PodPort, ...]:
    found = peer(item)
    assert isinstance(found.fact, Peer), found.problems
    return found.fact.ports


@pytest.mark.parametrize(
    ("item", "want"),
    [
        (manifest(), ()),
        (manifest({}, {"ports": None}, {"ports": [PLAIN]}), ()),
        (manifest({"ports": [WEB, DNS]}), (PodPort("dns", 17, 53), PodPort("web", 6, 80))),
        (manifest({"ports": [WEB]}, {"ports": [PLAIN, WEB, DNS]}), (PodPort("dns", 17, 53), PodPort("web", 6, 80))),
        (manifest({"ports": [WEB]}, init=[SIDECAR]), (PodPort("side", 6, 7), PodPort("web", 6, 80))),
        (manifest({"ports": [WEB]}, init=[SIDECAR | {"restartPolicy": None}]), (PodPort("web", 6, 80),)),
        (manifest(init=[SIDECAR, {"restartPolicy": "Always"}]), (PodPort("side", 6, 7),)),
        (manifest({"ports": [WEB]}, hostNetwork=True), ()),
        (manifest({"ports": [WEB | {"name": ""}]}), ()),
    ],
)
def test_named_ports_of_other_nodes_pods(item: dict[str, Any], want: tuple[PodPort, ...]):
    assert ports(item) == want
    assert ports(json.loads(json.dumps(item))) is ports(item)


def test_a_pod_of_ours_has_its_sidecars_ports_too():
    found = decode(manifest({"ports": [WEB, PLAIN]}, init=[SIDECAR, {"ports": [DNS]}])).fact
    assert isinstance(found, Pod)
    assert found.ports == (PodPort("web", 6, 80), PodPort("", 6, 9), PodPort("side", 6, 7))


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (manifest({}, {"ports": [WEB, WEB | {"protocol": "ICMP"}]}), "spec.containers[1].ports[1].protocol"),
        (
            manifest(init=[SIDECAR | {"ports": [WEB | {"containerPort": 0}]}]),
            "initContainers[0].ports[0].containerPort",
        ),
        (manifest({"ports": [WEB | {"containerPort": "http"}]}), "spec.containers[0].ports[0].containerPort"),
    ],
)
def test_a_port_that_is_none_is_named(item: dict[str, Any], field: str):
    for found in (peer(item), decode(item)):
        assert found.fact is None
        assert field in found.problems[0].field
