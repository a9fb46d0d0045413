"""Policies, labels and agents change while connections are open."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from ebpfnet.lab import client
from tests.netns.conftest import PATIENCE, Wait
from tests.netns.policies import NODES, SILENCE_S, Ask, World, labelled, policy
from tests.netns.test_restart import Load, running

FRIENDS = {"podSelector": labelled(role="friend")}
SOME = policy("some", ingress=[{"from": [FRIENDS]}])
GRACEFUL = policy("some", ingress=[{"from": [FRIENDS]}], annotations={"ebpfnet.io/established": "graceful"})
CLI = Path(sys.executable).parent / "ebpfnet"


@pytest.fixture
def world(policed: World) -> Iterator[World]:
    """Return the world of policies, that is as before afterwards."""
    yield policed
    for node in NODES:
        policed.lab.start_agent(node)
    policed.lab.wait_synced()
    policed.restore()


@pytest.fixture(params=["near", "far", "service-near", "service-far"])
def server(request: pytest.FixtureRequest) -> str:
    """Return a server on the client's node, or on the other one, or the service of one."""
    return str(request.param)


class Connection:
    """An open connection, asked line by line."""

    def __init__(self, world: World, ask: Ask) -> None:
        address, port = world.address(ask)
        self.sock = client.connected(world.place(ask.client), socket.IPPROTO_TCP, address, port)
        assert self.goes_on()

    def goes_on(self, timeout: float = 5) -> bool:
        """Say whether a line is answered."""
        self.sock.settimeout(timeout)
        try:
            self.sock.sendall(b"still?\n")
            while not (got := self.sock.recv(65536)).endswith(b"\n"):
                assert got, "the other end closed"
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_another_label_cuts_at_the_next_packet(world: World, server: str, family: int):
    ask = Ask(f"asker>{server}", family == socket.AF_INET6)
    world.apply([SOME])
    with Connection(world, ask) as connection:
        world.relabel("asker", role="stranger")
        before = world.drops()["policy"]
        assert not connection.goes_on(SILENCE_S)
        assert world.drops()["policy"] > before
        assert not world.passes(ask, SILENCE_S)


def test_what_was_cut_goes_on_when_it_is_allowed_again(world: World, server: str, family: int):
    """A drop is silence, and the client sends again."""
    world.apply([SOME])
    with Connection(world, Ask(f"asker>{server}", family == socket.AF_INET6)) as connection:
        world.relabel("asker", role="stranger")
        connection.sock.settimeout(SILENCE_S)
        connection.sock.sendall(b"later\n")
        with pytest.raises(TimeoutError):
            connection.sock.recv(1, socket.MSG_PEEK)
        world.relabel("asker", role="friend")
        connection.sock.settimeout(10)
        assert connection.sock.recv(1, socket.MSG_PEEK)


def test_graceful_leaves_what_is_open(world: World, server: str, family: int):
    ask = Ask(f"asker>{server}", family == socket.AF_INET6)
    world.apply([GRACEFUL])
    with Connection(world, ask) as connection:
        world.relabel("asker", role="stranger")
        assert connection.goes_on()
        assert not world.passes(ask, SILENCE_S)
        assert connection.goes_on()


def test_a_policy_that_comes_and_goes(world: World, server: str, family: int):
    ask = Ask(f"stranger>{server}", family == socket.AF_INET6)
    with Connection(world, ask) as cut, Connection(world, Ask(f"asker>{server}", ask.ipv6)) as kept:
        world.apply([SOME])
        assert not cut.goes_on(SILENCE_S)
        assert kept.goes_on()
        world.apply([])
        assert world.passes(ask)
        assert cut.goes_on(10)
        assert kept.goes_on()


PATHS = ("asker>near", "asker>far", "remote>service-near", "asker>service-far", "outside>port-near",
         "outside>port-far", "near>service-near", "far>service-far")  # fmt: skip


def test_what_is_open_ends_on_every_path_and_goes_on(world: World, family: int):
    """Node ports with the client's address and with the node's, and hairpins, too."""
    world.apply([])
    asks = [Ask(each, family == socket.AF_INET6) for each in PATHS]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(asks)) as pool:
        opened = [stack.enter_context(Connection(world, ask)) for ask in asks]
        world.apply([policy("none", policyTypes=["Ingress"])])
        assert list(pool.map(lambda each: each.goes_on(SILENCE_S), opened)) == [False] * len(asks)
        assert list(pool.map(lambda ask: world.passes(ask, SILENCE_S), asks)) == [False] * len(asks)
        world.apply([])
        assert list(pool.map(lambda each: each.goes_on(PATIENCE), opened)) == [True] * len(asks)


def test_labels_of_namespaces_count(world: World):
    world.apply([policy("some", ingress=[{"from": [{"namespaceSelector": labelled(team="blue")}]}])])
    with Connection(world, Ask("blue>near", ipv6=False)) as connection:
        world.namespaces["team-blue"] = {"team": "red"}
        world.namespaces["default"] = {"team": "blue"}
        world.apply()
        assert not connection.goes_on(SILENCE_S)
        world.check("asker>near remote>near stranger>far", "blue>near blue-stranger>far")


def test_flaps_of_a_label_end_where_it_ends(world: World, family: int):
    """Whatever the order of the events."""
    ask = Ask("asker>far", family == socket.AF_INET6)
    world.apply([SOME])
    for last in ("stranger", "friend", "stranger"):
        for role in ("friend", "stranger", "friend", last):
            world.pods["asker"] = world.pods["asker"]._replace(labels={"role": role})
            world.put()
        world.apply()
        assert world.passes(ask, 5 if last == "friend" else SILENCE_S) == (last == "friend")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_gap_while_agents_restart(world: World, wait: Wait, number: int):
    """What is denied is never let in, what is allowed never cut; with the agents dead, and while they start."""
    world.apply([SOME, policy("none", labelled(role="stranger"), policyTypes=["Ingress", "Egress"])])
    denied = [("stranger", "near", 0), ("stranger", "far", 1), ("asker", "stranger", 0), ("remote", "stranger", 1)]
    loads = [(intrusions, (world, Ask(f"{who}>{whom}", bool(v6)))) for who, whom, v6 in denied]
    loads += [(steady, (world, Ask("asker>near", ipv6=False))), (steady, (world, Ask("asker>far", ipv6=True)))]
    with running(loads) as results:
        some(results, wait)
        for node in NODES:
            world.lab.kill_agent(node, number)
        some(results, wait)
        for node in NODES:
            world.lab.start_agent(node)
        world.lab.wait_synced()
        some(results, wait)
    assert [each.failures for each in results] == [[]] * len(loads)
    assert [(world.lab.agent_status(node) or {})["writes"] for node in NODES] == [0, 0]


def some(results: list[Load], wait: Wait) -> None:
    """Wait until each load did some more."""
    goals = [each.done + 20 for each in results]
    wait(lambda: all(each.done >= goal or each.failures for each, goal in zip(results, goals, strict=True)))


def intrusions(result: Load, stop: threading.Event, world: World, ask: Ask) -> None:
    """Try to get in with new connections, and note when that works; many at once, for nobody answers."""
    place, address = world.place(ask.client), world.address(ask)
    while not stop.is_set():
        with contextlib.ExitStack() as opened:
            socks = [
                opened.enter_context(place.socket(client.family(address[0]), socket.SOCK_STREAM)) for _ in range(5)
            ]
            for sock in socks:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(address)
            stop.wait(0.1)
            for sock in socks:
                try:
                    sock.getpeername()
                    result.failures.append(f"{ask} got in")
                except OSError:
                    result.done += 1


def steady(result: Load, stop: threading.Event, world: World, ask: Ask) -> None:
    """Ask on one connection."""
    with Connection(world, ask) as connection:
        while not stop.wait(0.002):
            if not connection.goes_on(3):
                result.failures.append(f"{ask} was cut")
                return
            result.done += 1


def test_audit_counts_and_lets_pass(world: World):
    audited = policy("audited", policyTypes=["Ingress"], annotations={"ebpfnet.io/policy-mode": "audit"})
    world.apply([audited])
    before = world.drops()["audited"]
    world.check("asker>near asker>far asker>near:udp asker>near:icmp remote>service-near outside>port-near")
    assert world.drops()["audited"] - before >= 12
    (row,) = rows(world, "policy", "get", "audited", "--node", "node-a")
    assert row["mode"] == "audit"
    assert sum(each["audited"] for each in row["decides"]) >= 10
    assert any(each["reason"] == "AUDITED" for each in rows(world, "drop", "list", "--samples"))


def test_a_connection_and_a_drop_name_their_rule_and_the_commands_agree(world: World):
    world.apply([SOME])
    world.check("asker>near", "stranger>near")
    flows = [row for row in rows(world, "flow", "list", "--pod", "asker") if row["destination_pod"] == "default/near"]
    assert flows[0]["ingress_rule"] == "NetworkPolicy default/some, ingress[0]"  # newest first
    isolated = "isolated for ingress by NetworkPolicy default/some"
    assert rows(world, "drop", "list", "--samples", "--node", "node-a")[0]["rule"] == isolated
    for name, verdict in (("asker", "ALLOW"), ("stranger", "DENY")):
        whole = [str(CLI), "policy", "explain", "--from", name, "--to", "near", "--port", "8080"]
        said = subprocess.run([*whole, "--lab", world.lab.name], capture_output=True, text=True, check=False).stdout
        assert f"TCP 8080: {verdict}" in said
        assert isolated in said or verdict == "ALLOW"


def test_a_refused_policy_isolates_and_says_why(world: World):
    world.apply([policy("bad", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}, {}])])
    world.check("node-a>near near>asker", "asker>near asker>far asker>near:udp asker>near:icmp outside>port-near")
    for row in rows(world, "policy", "get", "bad"):
        assert row["enforced"] == "refused"
        assert any("spec.ingress[0].from[0].ipBlock.cidr" in each for each in row["problems"])


def rows(world: World, *command: str) -> list[dict[str, Any]]:
    """Return what a command says of the lab."""
    whole = [str(CLI), *command, "--lab", world.lab.name, "-o", "json"]
    said = subprocess.run(whole, capture_output=True, text=True, check=True, timeout=60).stdout
    return list(json.loads(said))
