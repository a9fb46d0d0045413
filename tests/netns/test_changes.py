"""Manifests are edited while the lab runs; traffic follows, and what can't be read changes nothing."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpfnet import abi
from ebpfnet.lab import client, folder
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.maps import pins
from tests.netns import objects
from tests.netns.conftest import Wait


@pytest.fixture
def edited(lab: Lab, wait: Wait) -> Iterator[Lab]:
    """Return the shared lab, whose manifests and wires are put back afterwards."""
    before = {path: path.read_text() for path in lab.manifests.iterdir()}
    counts = {node.name: backends(lab, node.name) for node in lab.plan.nodes}
    yield lab
    for path in set(lab.manifests.iterdir()) - before.keys():
        path.unlink()
    for path, text in before.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    lab.sync()
    wait(lambda: {node.name: backends(lab, node.name) for node in lab.plan.nodes} == counts)


def test_a_backend_taken_away_gets_no_new_connection(edited: Lab, caller: Inside, family: int, wait: Wait):
    address = edited.service("web").of(family)
    folder.edit(edited.manifests / "web.yaml", keep(1))
    wait(lambda: answering(caller, address) == {"default/web-a"})


def test_an_open_connection_outlives_its_endpoint_while_that_terminates(
    edited: Lab, caller: Inside, family: int, wait: Wait
):
    """Nobody new is led there; who is connected stays, until it is in no slice any more: then a reset says so."""
    address = edited.service("far").of(family)
    with caller.socket(family, socket.SOCK_STREAM) as sock, sock.makefile("rb") as stream:
        sock.settimeout(3)
        sock.connect((address, 80))
        folder.edit(edited.manifests / "tests.yaml", terminate("far"))
        wait(lambda: refused(caller, address))
        sock.sendall(b"still there?\n")
        assert client.parse(stream.readline()).pod == f"default/{objects.FAR_WEB}"
        folder.edit(edited.manifests / "tests.yaml", keep(0, "far"))
        wait(lambda: is_reset(sock))


def test_a_service_that_is_deleted_is_nobodys_address(edited: Lab, caller: Inside, family: int, wait: Wait):
    address = edited.service("mirror").of(family)
    (edited.manifests / "mirror.yaml").unlink()
    wait(lambda: not reachable(caller, address))


def test_a_new_pod_behind_a_new_service(edited: Lab, caller: Inside, family: int, wait: Wait):
    documents: list[dict[str, Any]] = [objects.pod("late", 1, 77), objects.pod("later", 2, 78)]
    service = objects.service("fresh", 230, [("http", "TCP", 80, 8080)], [objects.NEAR_WEB])
    for each, index in ((service[1], 0), (service[2], 1)):
        each["endpoints"] = [{"addresses": [pod["status"]["podIPs"][index]["ip"]]} for pod in documents]
    (edited.manifests / "late.yaml").write_text(yaml.safe_dump_all([*documents, *service]))
    edited.sync()
    address = service[0]["spec"]["clusterIPs"][family == socket.AF_INET6]
    wait(lambda: answering(caller, address) == {"default/late", "default/later"})


def test_a_half_written_file_keeps_the_last_good_version(edited: Lab, caller: Inside, family: int, wait: Wait):
    path = edited.manifests / "web.yaml"
    path.write_text(path.read_text()[:700] + '\n  broken: "')
    wait(lambda: problems(edited))
    assert len(answering(caller, edited_address(family))) == 3


def test_a_pod_known_only_after_a_client_began_to_talk_to_it_answers(
    edited: Lab, caller: Inside, family: int, distance: str, wait: Wait
):
    """The flow is there before the pod: what it says of the pod's wire must not outlive the truth."""
    name = objects.NEAR_DNS if distance == "near" else objects.FAR_DNS
    pod = edited.pod(name)
    path = edited.manifests / "pods.yaml"
    before = path.read_text()
    folder.edit(path, without(name))
    node = "node-a" if distance == "near" else "node-b"
    wait(lambda: abi.pack_address(ipaddress.ip_address(pod.of(family))) not in entries(edited, node, "pods"))
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((pod.of(family), 5353))

        def answered() -> bool:
            sock.send(b"are you there?")
            try:
                return client.parse(sock.recv(1000)).pod == f"default/{name}"
            except OSError:
                return False

        assert not answered()
        path.write_text(before)
        wait(answered)


def test_a_client_that_never_stops_sending_moves_to_a_backend_that_is_left(
    edited: Lab, caller: Inside, family: int, wait: Wait
):
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((edited.service("dns").of(family), 53))
        first = asked(sock)
        folder.edit(edited.manifests / "dns.yaml", drop(edited.pod(first).of(family)))
        wait(lambda: asked(sock) not in {first, ""})


def test_a_client_that_began_before_its_service_is_translated(edited: Lab, caller: Inside, family: int, wait: Wait):
    service = objects.service("fresh-dns", 231, [("dns", "UDP", 53, 5353)], [objects.NEAR_DNS])
    address = service[0]["spec"]["clusterIPs"][family == socket.AF_INET6]
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((address, 53))
        assert not asked(sock)
        (edited.manifests / "fresh.yaml").write_text(yaml.safe_dump_all(service))
        wait(lambda: asked(sock) == f"default/{objects.NEAR_DNS}")


def asked(sock: socket.socket) -> str:
    """Send a datagram; return the pod that answers, if one does at once."""
    try:
        sock.send(b"who?")
        return client.parse(sock.recv(1000)).pod
    except OSError:
        return ""


def drop(address: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that takes an endpoint away."""

    def change(document: dict[str, Any]) -> None:
        if document["kind"] == "EndpointSlice":
            document["endpoints"] = [each for each in document["endpoints"] if address not in each["addresses"]]

    return change


def without(pod: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that moves a pod to a node that this lab does not have."""

    def change(document: dict[str, Any]) -> None:
        if document["kind"] == "Pod" and document["metadata"]["name"] == pod:
            document["spec"]["nodeName"] = "node-z"

    return change


def keep(count: int, service: str | None = None) -> Callable[[dict[str, Any]], None]:
    """Return a change that keeps so many endpoints of each slice (of one service, or of all in the file)."""

    def change(document: dict[str, Any]) -> None:
        if document["kind"] == "EndpointSlice":
            owner = document["metadata"]["labels"]["kubernetes.io/service-name"]
            if service in {None, owner}:
                document["endpoints"] = document["endpoints"][:count]

    return change


def terminate(service: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that says of a service's endpoints that they terminate, and serve nobody new."""

    def change(document: dict[str, Any]) -> None:
        owner = document["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        if document["kind"] == "EndpointSlice" and owner == service:
            for each in document["endpoints"]:
                each["conditions"] = {"ready": False, "serving": False, "terminating": True}

    return change


def is_reset(sock: socket.socket) -> bool:
    """Say something; tell whether the answer is a reset."""
    try:
        sock.sendall(b"still there?\n")
        sock.recv(2000)
    except ConnectionResetError:
        return True
    return False


def backends(lab: Lab, node: str) -> dict[bytes, int]:
    """Return the number of backends of each endpoint set in a node's tables."""
    return {key: abi.Set.unpack(value).count for key, value in entries(lab, node, "sets").items()}


def entries(lab: Lab, node: str, table: str) -> dict[bytes, bytes]:
    """Return what one of a node's tables holds."""
    with pins.opened(lab.pins(node)) as tables:
        return dict(tables[table].items())


def answering(caller: Inside, address: str) -> set[str]:
    """Return the pods that answer forty connections."""
    try:
        return {client.tcp(caller, address, 80).pod for _ in range(40)}
    except OSError:
        return set()


def refused(caller: Inside, address: str) -> bool:
    """Say whether a connection is refused."""
    try:
        client.tcp(caller, address, 80)
    except ConnectionRefusedError:
        return True
    return False


def reachable(caller: Inside, address: str) -> bool:
    """Say whether a connection gets an answer."""
    try:
        client.tcp(caller, address, 80, timeout=0.5)
    except OSError:
        return False
    return True


def problems(lab: Lab) -> list[Any]:
    """Return what the agent of node-a complains about."""
    status = lab.agent_status("node-a")
    return list(status["problems"]) if status else []


def edited_address(family: int) -> str:
    """Return the address of ``default/web`` from the packaged manifests: the lab's own file is broken just now."""
    addresses = folder.cluster_ips(Path(folder.DEMO))["default/web"]
    return addresses[family == socket.AF_INET6]
