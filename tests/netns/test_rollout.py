"""A rolling update under load, and what becomes of who was connected: counted.

Each backend is ready, then terminating (it still serves: KEP-1669), then gone from every slice.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects
from tests.netns.conftest import PATIENCE, Wait

WEB, DNS = ("web-a", "web-b", "web-c"), ("dns-a", "dns-b")
NODE_PORTS = (30240, 30241)
LONG = 8  # connections that each client keeps open: of three backends none is missed, but once in 10 runs


class Rollout:
    """A service whose endpoints are moved from state to state; ``web`` is TCP, ``dns`` UDP."""

    def __init__(self, lab: Lab, **fields: Any) -> None:
        self.lab, self.path = lab, lab.manifests / "rollout.yaml"
        ports = [("web", "TCP", 80, 8080), ("dns", "UDP", 53, 5353)]
        self.documents = objects.service("rollout", 240, ports, [], node_ports=NODE_PORTS, **fields)
        self.states: dict[str, str] = {}

    def move(self, **states: str) -> None:
        """Say which pods are ready, terminating or gone, each by its name with an underscore; the others stay."""
        self.states |= {name.replace("_", "-"): state for name, state in states.items()}
        for index, document in enumerate(self.documents[1:]):
            document["endpoints"] = [
                endpoint(name, index, state) for name, state in self.states.items() if state != "gone"
            ]
        self.path.write_text(yaml.safe_dump_all(self.documents))

    def address(self, family: int) -> str:
        return str(self.documents[0]["spec"]["clusterIPs"][family == socket.AF_INET6])


def endpoint(name: str, index: int, state: str) -> dict[str, object]:
    ready = state == "ready"
    conditions = {"ready": ready, "serving": True, "terminating": not ready}
    return {
        "addresses": [objects.pod_addresses(name)[index]],
        "conditions": conditions,
        "nodeName": objects.node_of(name),
    }


@pytest.fixture
def rollout(lab: Lab) -> Iterator[Rollout]:
    """Return a service of the shared lab, which is gone afterwards."""
    found = Rollout(lab)
    yield found
    found.path.unlink(missing_ok=True)


@dataclass
class Load:
    """One client: short connections without a pause, and some that it keeps and says something on now and then."""

    name: str
    place: Inside
    address: str
    port: int
    done: int = 0
    failed: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    kept: list[tuple[str, socket.socket]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def open(self) -> None:
        for _ in range(LONG):
            sock = client.connected(self.place, socket.IPPROTO_TCP, self.address, self.port)
            self.kept.append((say(sock), sock))

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.seen.append(client.tcp(self.place, self.address, self.port).pod)
                self.done += 1
            except (OSError, ValueError) as error:
                self.failed.append(repr(error))
            if self.done % 20 == 0:
                self.talk()

    def talk(self) -> None:
        """Say something on every connection that is kept; one that fails is lost, with the reason."""
        for pod, sock in list(self.kept):
            try:
                assert say(sock) == pod
            except (OSError, ValueError, AssertionError) as error:
                self.lost.setdefault(pod, []).append(type(error).__name__)
                self.kept.remove((pod, sock))
                sock.close()


def say(sock: socket.socket) -> str:
    """Say a line, and return the pod that answers."""
    sock.sendall(b"hello\n")
    line = b""
    while not line.endswith(b"\n"):
        if not (part := sock.recv(2000)):
            raise ConnectionError("closed")
        line += part
    return client.parse(line).pod


@contextlib.contextmanager
def running(loads: list[Load]) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=load.run, args=(stop,)) for load in loads]
    for load in loads:
        load.open()
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for load in loads:
            for _, sock in load.kept:
                sock.close()


def serving(loads: list[Load], pods: set[str]) -> Callable[[], bool]:
    """Return a condition: that the last connections of every client went to these pods, and only these."""
    marks = [len(load.seen) for load in loads]

    def so() -> bool:
        recent = [load.seen[max(mark, len(load.seen) - 40) :] for load, mark in zip(loads, marks, strict=True)]
        return all(len(each) == 40 and set(each) == {f"default/{name}" for name in pods} for each in recent)

    return so


def reaches(load: Load, pods: set[str]) -> bool:
    """Say whether a client's connections go to these pods, and only these."""
    try:
        seen = {client.tcp(load.place, load.address, load.port, timeout=0.3).pod for _ in range(40)}
    except OSError:
        return False
    return seen == {f"default/{name}" for name in pods}


def all_gone(loads: list[Load], name: str) -> bool:
    """Say whether every connection to a backend that is gone was told so."""
    return not any(pod == f"default/{name}" for load in loads for pod, _ in list(load.kept))


def reachable(place: Inside, address: str, port: int = 80) -> bool:
    try:
        client.tcp(place, address, port, timeout=0.3)
    except OSError:
        return False
    return True


def ask(sock: socket.socket) -> str:
    """Send a datagram; return the pod that answers, or nothing."""
    try:
        sock.send(b"who?")
        return client.parse(sock.recv(1000)).pod
    except OSError:
        return ""


def answers(sock: socket.socket, count: int) -> list[str]:
    """Return who answers so many datagrams, however long each takes."""
    silence = sock.gettimeout()
    sock.settimeout(PATIENCE)
    try:
        return [ask(sock) for _ in range(count)]
    finally:
        sock.settimeout(silence)


@pytest.mark.parametrize("where", ["pod", "host", "outside"])
def test_datagrams_go_to_who_is_left(rollout: Rollout, lab: Lab, family: int, where: str, wait: Wait):
    """From one socket: to a backend that terminates as before, to another at once when it is gone, then to nobody."""
    rollout.move(dns_a="ready")
    place = {"pod": lab.pod("client"), "host": lab.node("node-a"), "outside": lab.outside()}[where]
    target = (lab.node("node-a").of(family), NODE_PORTS[1]) if where == "outside" else (rollout.address(family), 53)
    with client.connected(place, socket.IPPROTO_UDP, *target, timeout=0.2) as sock:
        wait(lambda: ask(sock) == "default/dns-a")
        rollout.move(dns_a="terminating", dns_b="ready")
        wait(lambda: fresh(place, target) == "default/dns-b")
        assert answers(sock, 10) == ["default/dns-a"] * 10
        rollout.move(dns_a="gone")
        wait(lambda: ask(sock) == "default/dns-b")
        assert answers(sock, 50) == ["default/dns-b"] * 50
        rollout.path.unlink()
        wait(lambda: not ask(sock))
        assert [ask(sock) for _ in range(3)] == [""] * 3


def fresh(place: Inside, target: tuple[str, int]) -> str:
    """Return who answers a new socket."""
    with client.connected(place, socket.IPPROTO_UDP, *target, timeout=0.2) as sock:
        return ask(sock)


def test_clients_stay_with_their_backend_until_it_is_gone(lab: Lab, wait: Wait):
    """Session affinity outlives the agent, is each client's own, and follows when the backend goes."""
    affinity = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
    rollout, outside, node, pod = Rollout(lab, **affinity), lab.outside(), lab.node("node-a"), lab.pod("client")
    try:
        rollout.move(web_a="ready", web_b="ready", web_c="ready")
        calls = []
        for family in (socket.AF_INET, socket.AF_INET6):
            targets = [(outside, node.of(family), NODE_PORTS[0]), (pod, rollout.address(family), 80)]
            for place, address, port in targets:
                wait(functools.partial(reachable, place, address, port))
                sources = [each for each in place.addresses if client.family(each) == family]
                calls += [functools.partial(client.tcp, place, address, port, source=each) for each in sources]
        first = stays(calls)
        lab.restart_agent("node-a")
        assert stays(calls) == first
        lab.kill_agent("node-a")
        assert stays(calls) == first
        lab.start_agent("node-a")
        lab.wait_synced()
        gone = first[-1].removeprefix("default/")
        rollout.move(**{gone.replace("-", "_"): "gone"})
        wait(lambda: first[-1] not in {call().pod for call in calls})
        second = stays(calls)
        assert all(new == old for new, old in zip(second, first, strict=True) if old != first[-1])
        rollout.move(**{gone.replace("-", "_"): "ready"})
        assert stays(calls) == second
    finally:
        rollout.path.unlink(missing_ok=True)


def stays(calls: Sequence[Callable[[], client.Answer]]) -> list[str]:
    """Return which backend each client has; every one of its connections must go there."""
    seen = [{call().pod for _ in range(20)} for call in calls]
    assert all(len(each) == 1 for each in seen), seen
    return [each.pop() for each in seen]


def test_a_rolling_update_loses_no_connection_that_could_be_kept(rollout: Rollout, lab: Lab, family: int, wait: Wait):
    outside, node = lab.outside(), lab.node("node-a")
    rollout.move(web_a="ready", web_b="ready")
    vip = rollout.address(family)
    loads = [Load("pod", lab.pod("client"), vip, 80), Load("host", node, vip, 80)]
    loads.append(Load("outside", outside, node.of(family), NODE_PORTS[0]))
    for load in loads:
        wait(functools.partial(reaches, load, {"web-a", "web-b"}))
    with running(loads):
        wait(serving(loads, {"web-a", "web-b"}))
        rollout.move(web_c="ready")
        wait(serving(loads, {"web-a", "web-b", "web-c"}))
        for leaving, left in (("web-a", {"web-b", "web-c"}), ("web-b", {"web-c"})):
            rollout.move(**{leaving.replace("-", "_"): "terminating"})
            wait(serving(loads, left))
            assert not any(f"default/{leaving}" in load.lost for load in loads)
            rollout.move(**{leaving.replace("-", "_"): "gone"})
            wait(functools.partial(all_gone, loads, leaving))
        rollout.move(web_c="terminating")  # nothing else is left: it serves on
        wait(serving(loads, {"web-c"}))
    for load in loads:
        assert (load.failed, load.done > 200) == ([], True), load
        assert load.lost.keys() <= {"default/web-a", "default/web-b"}, load
        assert {reason for reasons in load.lost.values() for reason in reasons} <= {"ConnectionResetError"}, load
