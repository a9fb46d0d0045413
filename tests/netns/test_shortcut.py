"""The shortcut at connect time with whole agents: both nodes of a lab on one cgroup, which this process is in."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ebpfnet import abi
from ebpfnet.abi import FlowFlag
from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab, down
from ebpfnet.maps import pins
from tests import cgroups
from tests.netns import objects
from tests.netns.conftest import PATIENCE, Wait
from tests.netns.kube import NODES

SHORT, LAST = "short", 220
PORTS = itertools.count(20_000)
"""Below those that the kernel picks, each for one connection: what flows are left of others' never has one of them."""


def leads_to(place: Path, pod: str) -> None:
    """Have the service lead to one pod."""
    fresh = place / "short.new"
    fresh.write_text(yaml.safe_dump_all(objects.service(SHORT, LAST, [("http", "TCP", 80, 8080)], [pod])))
    fresh.rename(place / "short.yaml")


@pytest.fixture(scope="module")
def group() -> Iterator[Path]:
    with cgroups.made_or_skipped() as path:
        yield path


@pytest.fixture(scope="module")
def short(group: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = objects.write(tmp_path_factory.mktemp("short"))
    leads_to(place, objects.NEAR_WEB)
    name = f"t{os.getpid()}-short"
    try:
        lab = Lab.up(name, place, agent_arguments=(f"--socket-shortcut={group}",), timeout=PATIENCE)
        with cgroups.inside(group):
            yield lab
    finally:
        down(name)


@contextmanager
def connected(place: Inside, address: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with place.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        made.bind(("", next(PORTS)))
        made.connect((address, 80))
        made.sendall(b"hello\n")
        assert made.recv(4096)
        yield made


def flow_of(lab: Lab, made: socket.socket) -> tuple[abi.Tuple, abi.Flow]:
    """Return the flow of what a pod of node-a sends on a connection."""
    with pins.opened(lab.pins("node-a")) as tables:
        flows = [(abi.Tuple.unpack(key), abi.Flow.unpack(value)) for key, value in tables["flows"].items()]
    port = made.getsockname()[1]
    (found,) = (each for each in flows if each[0].source_port == port and not each[1].flags & FlowFlag.REPLY)
    return found


def test_a_pods_connections_after_the_first_are_not_translated(short: Lab, family: int):
    caller, address = short.pod("client"), short.service("web").of(family)
    with connected(caller, address):
        pass
    with connected(caller, address) as made:
        asked, flow = flow_of(short, made)
        assert made.getpeername()[:2] == (address, 80)
    assert asked == flow.to
    assert not flow.flags & FlowFlag.NAT
    with pins.opened(short.pins("node-a")) as tables:
        assert abi.unpack_name(tables["names"].get(flow.service.to_bytes(8, "little")) or b"").startswith("default/web")


def test_the_nodes_connections_are_not_translated(short: Lab, family: int):
    address = short.service("web").of(family)
    with connected(short.node("node-a"), address) as made:
        assert made.getpeername()[:2] == (address, 80)
        cookie = made.getsockopt(socket.SOL_SOCKET, 57, 8)  # SO_COOKIE
        with pins.opened(short.pins("node-a")) as tables:
            known = abi.Socket.unpack(tables["sockets"].get(cookie) or b"")
        assert known.given.port == 8080


def test_every_node_serves_its_own_pods(short: Lab, family: int):
    address = short.service("web").of(family)
    for pod in ("client", objects.FAR_WEB):
        for _ in range(2):
            assert client.tcp(short.pod(pod), address, 80).pod.startswith("default/web-")
    known = []
    for node in NODES:
        with pins.opened(short.pins(node)) as tables:
            known.append({bytes(key) for key, value in tables["namespaces"].items() if any(value[12:])})
    assert known[0]
    assert known[1]
    assert not known[0] & known[1]


def test_a_connection_ends_when_its_backend_is_gone(short: Lab, family: int, wait: Wait):
    caller, address = short.pod("client"), short.service(SHORT).of(family)
    wait(lambda: client.tcp(caller, address, 80).pod == f"default/{objects.NEAR_WEB}")
    with connected(caller, address) as made:
        assert not flow_of(short, made)[1].flags & FlowFlag.NAT
        leads_to(short.manifests, objects.FAR_WEB)
        try:
            wait(reset(made))
        finally:
            leads_to(short.manifests, objects.NEAR_WEB)


def reset(made: socket.socket) -> Callable[[], bool]:
    """Return whether a connection is reset when it says something."""

    def asked() -> bool:
        try:
            made.sendall(b"hello\n")
            assert made.recv(4096), "the backend's end is no reset"
        except ConnectionResetError:
            return True
        return False

    return asked


def test_it_goes_on_without_an_agent_and_the_next_takes_it_over(short: Lab, group: Path):
    caller, address = short.pod("client"), short.service("web").v4
    short.kill_agent("node-a")
    for _ in range(2):
        with connected(caller, address) as made:
            assert made.getpeername()[:2] == (address, 80)
    short.restart_agent("node-a")
    with connected(caller, address) as made:
        assert not flow_of(short, made)[1].flags & FlowFlag.NAT
    assert (short.agent_status("node-a") or {})["socket_shortcut"] == str(group)
