"""Every kind of client at every kind of address, for each protocol, family and traffic policy: real connections.

Who answers, and whom a backend sees, is the oracle's word; the lab is one for all of them.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab, down
from tests.netns import matrix, objects
from tests.netns.conftest import PATIENCE
from tests.netns.matrix import ASKS, Ask, Expected, Oracles
from tests.netns.test_pods import host
from tests.service_oracle import Action

ATTEMPTS = 60  # of two backends, one is missed once in 2^59 runs
SILENCE_S = 0.4  # as long as what is dropped is waited for; what is there answers in less than a millisecond


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return matrix.write(objects.write(tmp_path_factory.mktemp("matrix")))


@pytest.fixture(scope="module")
def crowd(place: Path) -> Iterator[Lab]:
    """Return a lab of its own, whose agents have the flags that services ask for."""
    name = f"t{os.getpid()}-matrix"
    try:
        lab = Lab.up(name, place, agent_arguments=matrix.AGENT, timeout=PATIENCE)
        for command in matrix.routes(lab):
            assert lab.outside().exec(*command).returncode == 0
        yield lab
    finally:
        down(name)


@pytest.fixture(scope="module")
def oracles(place: Path) -> Oracles:
    return Oracles(place)


@pytest.mark.parametrize("ask", ASKS, ids=str)
def test_who_answers_and_whom_it_sees(crowd: Lab, oracles: Oracles, ask: Ask):
    place = matrix.asker(crowd, ask)
    source = place.v6 if ask.ipv6 else place.v4
    expected = oracles.expected(ask, source)
    call = functools.partial({"TCP": client.tcp, "UDP": client.udp}[ask.protocol], source=source)
    address, port = matrix.target(ask)
    if expected.answer.action == Action.FORWARD:
        assert answered(call, place, address, port, expected).keys() == expected.pods.keys()
    elif expected.answer.action == Action.REJECT:
        with pytest.raises(ConnectionRefusedError):
            call(place, address, port)
    else:
        assert expected.answer.action == Action.DROP
        with pytest.raises(TimeoutError):
            call(place, address, port, timeout=SILENCE_S)


def answered(
    call: Callable[..., client.Answer], place: Inside, address: str, port: int, expected: Expected
) -> dict[str, str]:
    """Connect until everybody who may answer has answered; return who did, and the client that it saw."""
    seen: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        answer = call(place, address, port)
        assert answer.pod in expected.pods, (answer, expected)
        assert host(answer.client) in expected.pods[answer.pod], (answer, expected)
        seen[answer.pod] = host(answer.client)
        if seen.keys() == expected.pods.keys():
            break
    return seen


def test_large_messages_survive_both_translations(crowd: Lab, family: int):
    """From outside to a backend on another node, more than one packet each way."""
    node = crowd.node("node-a")
    for _ in range(8):
        port = matrix.node_port("cluster", "TCP")
        answer = client.tcp(crowd.outside(), node.of(family), port, b"pad=300000 " + b"y" * 200_000 + b"\n", 10)
        assert (len(answer.pad), answer.bytes) == (300_000, 200_012)


def test_what_a_node_serves_is_the_nodes_alone(crowd: Lab, family: int):
    """Through the other node the same service is reached, too, and that one stands in for the client."""
    node, seen = crowd.node("node-b"), set[tuple[str, str]]()
    for _ in range(ATTEMPTS):
        port, source = matrix.node_port("cluster", "TCP"), crowd.outside().of(family)
        answer = client.tcp(crowd.outside(), node.of(family), port, source=source)
        seen.add((answer.pod, host(answer.client)))
    assert seen == {("default/m-far", crowd.outside().of(family)), ("default/m-near", node.of(family))}


def test_undefined_ports_and_unallocated_addresses(crowd: Lab, family: int):
    ipv6 = family == client.family("::")
    address = matrix.addresses("cluster", "ClusterIP", ipv6)
    for place in (crowd.pod("m-asker"), crowd.node("node-a"), crowd.outside()):
        for call in (client.tcp, client.udp):
            with pytest.raises(ConnectionRefusedError):
                call(place, address, 81)
    with pytest.raises(TimeoutError):
        client.tcp(crowd.pod("m-asker"), "fd00:10:96::1:99" if ipv6 else "10.96.1.99", 80, timeout=SILENCE_S)


@pytest.mark.parametrize("client_is", ["pod", "process"])
def test_each_answer_comes_from_whom_one_port_asked(crowd: Lab, family: int, client_is: str):
    """Both may lead to one process of node-a's: its NodePort there, and the cluster IP at the client's node."""
    ipv6 = family == client.family("::")
    place, port = (
        crowd.pod("m-remote") if client_is == "pod" else crowd.node("node-b"),
        matrix.node_port("hosts", "UDP"),
    )
    services = [
        (matrix.addresses("hosts", "NodePort", ipv6), port),
        (matrix.addresses("hosts", "ClusterIP", ipv6), matrix.PORTS["UDP"]),
    ]
    for _ in range(ATTEMPTS // 2):  # 1 in 4 goes to that process both times
        with place.socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            for asked in services:
                asking.sendto(b"who\n", asked)
                _, answered_by = asking.recvfrom(65535)
                assert answered_by[:2] == asked
