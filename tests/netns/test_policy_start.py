"""A policy is there before its pod is: no packet goes out or comes in first, however early somebody begins to try."""

from __future__ import annotations

import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ebpfnet.lab import client, namespace, state
from tests.netns.conftest import Wait
from tests.netns.policies import NODES, PODS, SILENCE_S, Ask, PodOf, World, addresses, labelled, policy
from tests.netns.test_restart import Load, running

PORT = 7777
ENOUGH = 50
LATE = {"late": PodOf(1, 40, {"role": "late"}), "free": PodOf(1, 41, {"role": "free"})}
"""One that is isolated, and one that no policy selects: it shows that there are ways."""
OTHERS = ("near", "far", "blue")


@pytest.fixture
def world(policed: World) -> Iterator[World]:
    """Return the world of policies, that is as before afterwards."""
    yield policed
    policed.restore()
    policed.lab.sync()


class Heard:
    """Who was heard by whom, and how often."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def listen(self, result: Load, stop: threading.Event, world: World, name: str, family: int) -> None:
        """Note who is heard in a pod, from the moment that it has a namespace."""
        with begin(world, name, family, stop) as ear:
            ear.bind(("", PORT))
            ear.settimeout(0.1)
            while not stop.is_set():
                try:
                    self.counts[ear.recv(100).decode(), name] += 1
                except TimeoutError:
                    continue
                result.done += 1


def hammer(result: Load, stop: threading.Event, world: World, name: str, family: int, targets: list[str]) -> None:
    """Send from a pod as soon as it has a namespace, again and again; at first there is no way, or nobody there."""
    with begin(world, name, family, stop) as mouth:
        mouth.setblocking(False)
        for target in itertools.cycle(targets):
            if stop.wait(0.001):
                return
            try:
                mouth.sendto(name.encode(), (target, PORT))
            except OSError:
                continue
            result.done += 1


def begin(world: World, name: str, family: int, stop: threading.Event) -> socket.socket:
    """Return a socket of a pod as soon as it has a namespace."""
    while True:
        plan = state.load(world.lab.name).plan
        place = next((each.netns for each in plan.pods if each.full_name == full_name(name)), None)
        if stop.wait(0.001):
            return socket.socket(family, socket.SOCK_DGRAM)
        try:
            if place is not None:
                return namespace.run(place, lambda: socket.socket(family, socket.SOCK_DGRAM))
        except OSError:
            continue


def full_name(name: str) -> str:
    return f"{(PODS | LATE)[name].namespace}/{name}"


@pytest.mark.parametrize("agents", ["alive", "killed"])
def test_policy_gap_at_start(world: World, wait: Wait, family: int, agents: str):
    """With agents that were dead the wire is there long before anybody serves it."""
    world.apply([policy("none", labelled(role="late"), policyTypes=["Ingress", "Egress"])])
    heard, ipv6 = Heard(), family == socket.AF_INET6
    at = {name: addresses(each)[ipv6] for name, each in (PODS | LATE).items()}
    loads: list[tuple[Callable[..., None], tuple[object, ...]]] = []
    loads += [(heard.listen, (world, name, family)) for name in (*LATE, *OTHERS)]
    loads += [(hammer, (world, name, family, [at[each] for each in OTHERS])) for name in LATE]
    loads += [(hammer, (world, name, family, [at[each] for each in LATE])) for name in OTHERS]
    for node in NODES if agents == "killed" else ():
        world.lab.kill_agent(node)
    with running(loads) as results:
        world.pods = PODS | LATE
        world.put()
        world.lab.sync()
        ways = [*itertools.product(["free"], OTHERS), *itertools.product(OTHERS, ["free"])]
        wait(lambda: all(heard.counts[way] >= ENOUGH for way in ways))
    assert [each.failures for each in results] == [[]] * len(loads)
    assert {way: count for way, count in heard.counts.items() if "late" in way} == {}
    assert client.tcp(world.place("late"), "127.0.0.1", 8080).pod == "default/late"
    assert not world.passes(Ask("asker>late", ipv6), SILENCE_S)
    assert not world.passes(Ask("late>near", ipv6), SILENCE_S)
