"""Programs stay where they belong: who takes them off, and whatever interface is made anew, is answered."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns.conftest import Wait
from tests.netns.test_restart import filters


@pytest.fixture
def own(lab_name: str) -> Iterator[Lab]:
    """Return a lab of the test's own."""
    with Lab.up(lab_name) as lab:
        yield lab


def wire(lab: Lab) -> str:
    return next(pod.host_interface for pod in lab.plan.pods_of("node-a") if pod.full_name == "default/client")


def tc(node: Inside, *words: str) -> None:
    done = node.exec("tc", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["clsact of a pod", "filter of a pod", "clsact of the uplink"])
def test_what_somebody_takes_off_comes_back(own: Lab, wait: Wait, what: str):
    before, node = filters(own, "node-a"), own.node("node-a")
    device = "uplink" if "uplink" in what else wire(own)
    if what.startswith("clsact"):
        tc(node, "qdisc", "del", "dev", device, "clsact")
    else:
        tc(node, "filter", "del", "dev", device, "ingress")
    wait(lambda: filters(own, "node-a") == before)
    for family in (socket.AF_INET, socket.AF_INET6):
        assert client.tcp(own.pod("client"), own.service("web").of(family), 80).pod.startswith("default/web")


def test_what_can_t_be_attached_is_named_and_tried_again(own: Lab, wait: Wait):
    before, node = filters(own, "node-a"), own.node("node-a")
    device = wire(own)

    def problems() -> str:
        status = own.agent_status("node-a") or {}
        return " ".join(f"{each['ref']}: {each['reason']}" for each in status.get("problems", []))

    # In one step; when the agent is faster all the same, once more.
    command = f"tc qdisc del dev {device} clsact && tc qdisc add dev {device} ingress"
    wait(lambda: node.exec("sh", "-c", command).returncode == 0)
    wait(lambda: f"Interface {device}: another tool's ingress qdisc" in problems())
    tc(node, "qdisc", "del", "dev", device, "ingress")
    wait(lambda: filters(own, "node-a") == before and not problems())
