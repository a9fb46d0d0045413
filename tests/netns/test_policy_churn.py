"""While policies, labels and namespaces change as fast as they can, nobody is judged by a state that never was."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from ebpfnet.lab import client
from tests.netns.conftest import Wait
from tests.netns.policies import Ask, Manifest, World, cluster_policy, labelled, policy
from tests.netns.test_policy_changes import intrusions, steady
from tests.netns.test_restart import Load, running

FRIENDS = {"podSelector": labelled(role="friend")}
ROUNDS = 60

# In every state friends' TCP reaches the servers, by one of the rules or another, and strangers reach nobody. So it is
# in each state between two, for one object changes after the other.
ALLOWED = ("asker>near", "asker>far", "remote>service-near", "asker>service-far")
DENIED = ("stranger>near", "stranger>far", "stranger>service-far", "blue-stranger>near")
STATES: list[list[Manifest]] = [
    [policy("some", ingress=[{"from": [FRIENDS]}])],
    [policy("some", ingress=[{"from": [FRIENDS], "ports": [{"port": 8080}]}])],
    [policy("some", ingress=[{"from": [{"podSelector": {"matchExpressions": [
        {"key": "role", "operator": "NotIn", "values": ["stranger"]}]}}]}])],
    [policy("ports", ingress=[{"from": [FRIENDS], "ports": [
        {"port": 8000, "endPort": 8999}]}])],
    [policy("blocks", ingress=[{"from": [
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.11/32", "10.244.2.20/32"]}},
        {"ipBlock": {"cidr": "fd00:10:244::/48", "except": ["fd00:10:244:1::11/128",
                                                            "fd00:10:244:2::20/128"]}}]}])],
    [cluster_policy("admin", "Admin", 3, ingress=[
        {"action": "Deny", "from": [{"pods": {"podSelector": labelled(role="stranger")}}]},
        {"action": "Accept", "from": [{"pods": FRIENDS}],
         "protocols": [{"tcp": {"destinationPort": {"number": 8080}}}]},
    ])],
    [cluster_policy("base", "Baseline", 3, ingress=[{"action": "Accept", "from": [{"pods": FRIENDS}]},
                                                    {"action": "Deny", "from": [{"namespaces": {}}]}])],
    [policy("some", {}, ingress=[{"from": [FRIENDS]}]), policy("out", labelled(role="friend"), egress=[{"to": [
        {"podSelector": labelled(app="server")}]}])],
]  # fmt: skip


@pytest.fixture
def world(policed: World) -> Iterator[World]:
    """Return the world of policies, that is as before afterwards."""
    yield policed
    policed.restore()


def test_what_every_state_allows_never_fails_and_what_every_state_denies_never_succeeds(world: World, wait: Wait):
    """Across each pair of states, with labels that policies ask for and labels that they don't."""
    world.apply(STATES[0])
    loads = [(opened, (world, Ask(text, bool(at % 2)))) for at, text in enumerate(ALLOWED)]
    loads += [(steady, (world, Ask(text, not at % 2))) for at, text in enumerate(ALLOWED[:2])]
    loads += [(intrusions, (world, Ask(text, ipv6))) for text in DENIED for ipv6 in (False, True)]
    dice = random.Random(5)  # the same run each time
    with running(loads) as results:
        for at in range(ROUNDS):
            for name, extra in itertools.product(("asker", "stranger", "near", "far"), ("tier", "track")):
                labels = {**world.pods[name].labels, extra: dice.choice("abc")}
                world.pods[name] = world.pods[name]._replace(labels=labels)
            world.namespaces["default"] = {"team": dice.choice(["none", "red"])}
            if at % 4:
                world.put(dice.choice(STATES))
            else:
                world.apply(dice.choice(STATES))
        wait(lambda: all(each.done >= 20 or each.failures for each in results))
    assert [each.failures for each in results] == [[]] * len(loads), [each.done for each in results]


def opened(result: Load, stop: threading.Event, world: World, ask: Ask) -> None:
    """Open one connection after another."""
    place, (address, port) = world.place(ask.client), world.address(ask)
    while not stop.wait(0.002):
        try:
            with contextlib.closing(client.connected(place, socket.IPPROTO_TCP, address, port, 5)) as sock:
                sock.sendall(b"hello\n")
                client.parse(sock.recv(65536))
        except OSError as error:
            result.failures.append(f"{ask}: {error!r}")
        result.done += 1
