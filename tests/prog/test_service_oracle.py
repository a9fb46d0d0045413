"""Random clusters in the kernel's tables, packets of every kind of client through the programs: what the oracle says.

``EBPFNET_ORACLE_SEEDS`` says how many clusters (12), ``EBPFNET_ORACLE_FIRST`` where to begin (0).
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.all import IP, SCTP, TCP, UDP, Ether, IPv6, Packet

from ebpfnet import abi
from ebpfnet.datapath import build
from ebpfnet.simulate.network import private_network
from tests import packets
from tests.prog.loaded import Datapath, Result, opened
from tests.service_clusters import Cluster, Question, questions
from tests.service_oracle import Action, Answer, Client, Who, same
from tests.service_tables import Follower

FIRST, COUNT = int(os.environ.get("EBPFNET_ORACLE_FIRST", "0")), int(os.environ.get("EBPFNET_ORACLE_SEEDS", "12"))
QUESTIONS, TRIES = 150, 3
WRITTEN = ("services", "sets", "slots", "members", "ranges", "blocks", "node", "pods", "names")
SIZES = {"services": 2048, "sets": 512, "slots": 4096, "members": 2048, "ranges": 512, "blocks": 64, "names": 1024}
SIZES |= {"pods": 64, "flows": 16384, "affinity": 1024, "usage": 1024, "fragments": 1024}
PODS_MAX, UPLINK_IFINDEX = 12, 77
POD = "link add pod{0} index {0} type veth peer name in{0}\nlink set pod{0} up\nlink set in{0} up\n"
ROUTES = f"""
link set lo up
link add uplink index {UPLINK_IFINDEX} type veth peer name router
link set uplink up
link set router up
addr add 192.168.0.1/24 dev uplink
addr add fd00::1/64 dev uplink nodad
route add default via 192.168.0.254
route add default via fd00::fe
""" + "".join(map(POD.format, range(1001, 1001 + PODS_MAX)))
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
LAYERS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


@pytest.fixture(scope="module")
def node(compiled: build.Object) -> Iterator[Datapath]:
    with opened(compiled, SIZES) as found, private_network():
        subprocess.run(["sysctl", "-qw", *FORWARDING], check=True)
        subprocess.run(["ip", "-batch", "-"], input=ROUTES, text=True, check=True)
        yield found


def fill(node: Datapath, follower: Follower) -> dict[str, abi.Wire]:
    """Put a node's tables into the kernel; return the wire of each pod's address."""
    for name in (*WRITTEN, "flows", "affinity"):
        table = node.tables[name]
        if name != "node":
            table.delete_batch([key for key, _ in table.items()])
        if name in follower.tables:
            for key, value in follower.tables[name].items():
                table.put(key, value)
    pods = follower.tables["pods"].items()
    return {str(abi.unpack_address(key)): abi.Pod.unpack(value).wire for key, value in pods}


def send(node: Datapath, client: Client, packet: Packet, wires: dict[str, abi.Wire], own: set[str]) -> Result:
    """Send a packet where a client's would be met first."""
    layer = packet[IP] if IP in packet else packet[IPv6]
    if client.who == Who.POD:
        wire = wires[same(client.address)]
        frame = Ether(src=wire.mac.hex(":"), dst=packets.GATEWAY_MAC) / layer
        return node.run("from_pod", frame, wire.ifindex)
    if client.who == Who.HOST:
        hook = "from_host" if same(layer.dst) in own else "to_network"
        return node.run(hook, Ether(src=packets.GATEWAY_MAC, dst=packets.UPLINK_MAC) / layer, 0)
    frame = Ether(src=packets.STRANGER_MAC, dst=packets.UPLINK_MAC) / layer
    return node.run("from_network", frame, UPLINK_IFINDEX)


def first_packet(question: Question, port: int) -> Packet:
    segment: Any = {"TCP": packets.tcp, "UDP": packets.udp, "SCTP": packets.sctp}[question.protocol]
    layer = packets.ip(question.client.address, question.destination)
    return Ether() / layer / segment(sport=port, dport=question.port)


def heard(result: Result, question: Question) -> Answer:
    """Return what a backend or the client hears, in the oracle's words."""
    if result.outcome == abi.Outcome.DROP:
        return Answer(Action.DROP, result.reason.name)
    if result.outcome == abi.Outcome.REJECT:
        check_refusal(result, question)
        return Answer(Action.REJECT, result.reason.name)
    layer = result.packet[IP] if IP in result.packet else result.packet[IPv6]
    transport = layer[LAYERS[question.protocol]]
    assert packets.has_right_checksums(result.raw), result.packet
    if is_wrapped(result):
        assert (same(transport.underlayer.dst), transport.dport) == (same(question.destination), question.port)
        port = layer.fl & 0xFFFF if isinstance(layer, IPv6) else layer.id
        return Answer(Action.FORWARD, "", {(same(layer.dst), port): frozenset({same(transport.underlayer.src)})})
    if (same(layer.dst), transport.dport) == (same(question.destination), question.port):
        assert same(layer.src) == same(question.client.address)
        return Answer(Action.PASS)
    return Answer(Action.FORWARD, "", {(same(layer.dst), transport.dport): frozenset({same(layer.src)})})


def is_wrapped(result: Result) -> bool:
    """Say whether a packet is in a second header."""
    layer = result.packet[IP] if IP in result.packet else result.packet[IPv6]
    return isinstance(layer.payload, IP | IPv6)


def check_refusal(result: Result, question: Question) -> None:
    """TCP gets a reset, everything else port unreachable; both from the address that was called."""
    layer = result.packet[IP] if IP in result.packet else result.packet[IPv6]
    assert (same(layer.src), same(layer.dst)) == (same(question.destination), same(question.client.address))
    if question.protocol == "TCP":
        assert layer[TCP].flags == "RA", result.packet
    elif IP in result.packet:
        assert (layer.proto, bytes(layer.payload)[:2]) == (abi.Protocol.ICMP, b"\3\3"), result.packet
    else:
        assert (layer.nh, bytes(layer.payload)[:2]) == (abi.Protocol.ICMPV6, b"\1\4"), result.packet


def answered(node: Datapath, question: Question, there: Result, wires: dict[str, abi.Wire], own: set[str]) -> Result:
    """Let the backend answer what it got, and send the answer where it would be met first."""
    got = there.packet[IP] if IP in there.packet else there.packet[IPv6]
    transport, backend, seen = got[LAYERS[question.protocol]], same(got.dst), same(got.src)
    segment: Any = {"TCP": functools.partial(packets.tcp, "SA"), "UDP": packets.udp, "SCTP": packets.sctp}
    layer = packets.ip(backend, seen) / segment[question.protocol](sport=transport.dport, dport=transport.sport)
    if backend in wires:
        wire = wires[backend]
        return node.run("from_pod", Ether(src=wire.mac.hex(":"), dst=packets.GATEWAY_MAC) / layer, wire.ifindex)
    if backend not in own:
        frame = Ether(src=packets.STRANGER_MAC, dst=packets.UPLINK_MAC) / layer
        return node.run("from_network", frame, UPLINK_IFINDEX)
    hook = "from_host" if seen in own else "to_pod" if seen in wires else "to_network"
    return node.run(hook, Ether(src=packets.UPLINK_MAC, dst=packets.GATEWAY_MAC) / layer, 0)


def check_answer(result: Result, question: Question, port: int) -> None:
    """It comes from where the client called, and goes there where it called from."""
    note = f"{question}: the answer is {result} {result.packet!r}"
    assert result.outcome not in {abi.Outcome.DROP, abi.Outcome.REJECT}, note
    layer = result.packet[IP] if IP in result.packet else result.packet[IPv6]
    transport = layer[LAYERS[question.protocol]]
    assert packets.has_right_checksums(result.raw), note
    assert (same(layer.src), transport.sport) == (same(question.destination), question.port), note
    assert (same(layer.dst), transport.dport) == (same(question.client.address), port), note


def check(expected: Answer, got: Answer, question: Question) -> None:
    """One packet has one backend, which must be one of those that are right; without a source it gets nowhere."""
    note = f"{question}: expected {expected}, got {got}"
    if got == Answer(Action.DROP, "NO_SOURCE_ADDRESS"):
        assert frozenset() in expected.backends.values(), note
        return
    assert expected[:2] == got[:2], note
    for end, sources in got.backends.items():
        assert expected.backends.get(end, frozenset()) >= sources, note


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_packets_go_where_the_oracle_says(node: Datapath, seed: int):
    cluster, dice = Cluster(seed), random.Random(seed)
    ports = itertools.count(31_000)
    follower = Follower(cluster, cluster.manifests())
    for step in range(2):
        if step:
            follower.follow(cluster.step())
        wires, oracle = fill(node, follower), cluster.oracle()
        for question in questions(cluster, dice, QUESTIONS):
            expected = oracle.answer(*question)
            for _ in range(TRIES if len(expected.backends) > 1 else 1):
                port = next(ports)
                there = send(node, question.client, first_packet(question, port), wires, oracle.own)
                got = heard(there, question)
                if question.destination in oracle.others and got == Answer(Action.DROP, "UNALLOCATED_ADDRESS"):
                    continue  # kube-proxy drops what another proxy has not taken by then
                check(expected, got, question)
                if got.action == Action.FORWARD and not is_wrapped(there):  # else the backend's node knows the rest
                    check_answer(answered(node, question, there, wires, oracle.own), question, port)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 3))
def test_every_backend_is_chosen(node: Datapath, seed: int):
    cluster, dice = Cluster(seed), random.Random(seed)
    ports = itertools.count(31_000)
    for item in cluster.services.values():
        item["spec"] |= {"sessionAffinity": "None", "sessionAffinityConfig": {}}
    follower = Follower(cluster, cluster.manifests())
    wires, oracle = fill(node, follower), cluster.oracle()
    asked = [each for each in questions(cluster, dice, 300) if len(oracle.answer(*each).backends) > 1][:10]
    for question in asked:
        wanted = oracle.answer(*question).backends
        seen = set[tuple[str, int]]()
        for _ in range(200):  # of 8 backends, one is missed once in 10^10 runs
            packet = first_packet(question, next(ports))
            seen |= heard(send(node, question.client, packet, wires, oracle.own), question).backends.keys()
        assert seen == {end for end, sources in wanted.items() if sources}, question
