"""Pods as peers: grouped by what policies can tell apart."""

from __future__ import annotations

import dataclasses
import ipaddress
import random

import pytest

from ebpfnet import abi
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Kind, Peer, Pod, PodPort, Ref
from ebpfnet.model.labels import Labels
from ebpfnet.model.peers import Peers, as_peer, named_ports, pack

WEB: Labels = (("app", "web"),)
ONE, TWO = (pack(ipaddress.ip_address(text)) for text in ("10.1.0.1", "fd00::2"))


def peer(name: str, labels: Labels = WEB, addresses: bytes = ONE, namespace: str = "default") -> Peer:
    return Peer(Ref(Kind.PEER, namespace, name), labels, addresses)


def pod(name: str, node: str, *, host: bool = False) -> Pod:
    address = ipaddress.ip_address("10.1.0.1")
    return Pod(Ref(Kind.POD, "default", name), node, (address,), WEB, (), host)


def held(peers: Peers) -> dict[tuple[str, Labels], list[bytes]]:
    assert all(key == group.likeness and not key.ports for key, group in peers.groups.items())
    return {key[:2]: sorted(group.addresses.values()) for key, group in peers.groups.items()}


@pytest.mark.parametrize("text", ["10.1.0.1", "fd00::2"])
def test_addresses_are_packed_as_the_tables_hold_them(text: str):
    address = ipaddress.ip_address(text)
    assert pack(address) == abi.pack_address(address)


def test_pods_alike_are_one_group():
    peers = Peers()
    for each in (peer("a"), peer("b", addresses=TWO), peer("a", namespace="other"), peer("c", labels=())):
        assert peers.set(each)
    assert held(peers) == {("default", WEB): sorted([ONE, TWO]), ("other", WEB): [ONE], ("default", ()): [ONE]}


def test_what_changes_nothing_says_so():
    peers = Peers()
    assert [peers.set(peer("a")), peers.set(peer("a")), peers.set(peer("a", addresses=TWO))] == [True, False, True]
    assert [peers.drop(peer("a").ref), peers.drop(peer("a").ref)] == [True, False]
    assert held(peers) == {}


def test_other_labels_are_another_group():
    peers = Peers()
    peers.set(peer("a"))
    assert peers.set(peer("a", labels=()))
    assert held(peers) == {("default", ()): [ONE]}


def test_other_names_of_ports_are_another_group():
    web, dns = PodPort("web", 6, 80), PodPort("dns", 17, 53)
    peers = Peers()
    peers.set(peer("a"))
    assert peers.set(dataclasses.replace(peer("a"), ports=(web,)))
    assert not peers.set(dataclasses.replace(peer("a"), ports=(web,)))
    assert peers.set(dataclasses.replace(peer("b"), ports=(dns,)))
    assert set(peers.groups) == {("default", WEB, (web,)), ("default", WEB, (dns,))}
    assert [peers.drop(peer("a").ref), peers.drop(peer("b").ref), len(peers.groups)] == [True, True, 0]


def test_ports_of_a_pod_that_is_known_in_full():
    web, dns, other = PodPort("web", 6, 80), PodPort("dns", 17, 53), PodPort("web", 6, 8080)
    full = dataclasses.replace(pod("a", "node-b"), ports=(web, PodPort("", 6, 1), other, dns, web))
    assert as_peer(full).ports == (dns, web, other)
    assert as_peer(dataclasses.replace(full, host_network=True)).ports == ()


def test_a_pod_without_an_address_is_not_kept():
    peers = Peers()
    peers.set(peer("a"))
    assert peers.set(peer("a", addresses=b""))
    assert len(peers) == 0


def test_the_end_does_not_depend_on_the_way():
    dice = random.Random(20261121)
    for _ in range(50):
        peers = Peers()
        want: dict[Ref, Peer] = {}
        for _ in range(60):
            each = peer(dice.choice("abcd"), dice.choice((WEB, ())), dice.choice((ONE, TWO, b"")))
            if dice.random() < 0.2:
                peers.drop(each.ref)
                want.pop(each.ref, None)
            else:
                peers.set(each)
                want[each.ref] = each
        fresh = Peers()
        for each in want.values():
            fresh.set(each)
        assert held(peers) == held(fresh)
        assert len(peers) == len(fresh)


def test_pods_with_other_named_ports_are_another_group():
    http, dns = PodPort("http", 6, 80), PodPort("dns", 17, 53)
    assert named_ports([dns, PodPort("", 6, 1), http, dns]) == (dns, http)
    peers = Peers()
    for name, ports in (("a", (http,)), ("b", (dns, http)), ("c", (http,))):
        peers.set(Peer(Ref(Kind.PEER, "default", name), WEB, ONE, ports))
    assert {key.ports: len(group.addresses) for key, group in peers.groups.items()} == {(http,): 2, (dns, http): 1}


def test_where_a_pod_is_can_be_asked():
    peers = Peers()
    peers.set(peer("a", addresses=ONE + TWO))
    home = peers.find(peer("a").ref)
    assert home is not None
    assert (home.likeness, home.each()) == (("default", WEB, ()), [ONE, TWO])
    assert peers.find(peer("b").ref) is None


def test_a_pod_known_in_full_is_a_peer_on_every_node():
    cluster = Cluster("node-a")
    assert not cluster.set_pod(pod("x", "node-b"))
    assert held(cluster.peers) == {("default", WEB): [ONE]}
    assert cluster.set_pod(pod("x", "node-a"))
    assert held(cluster.peers) == {("default", WEB): [ONE]}
    assert cluster.set_pod(pod("x", "node-b"))
    assert held(cluster.peers) == {("default", WEB): [ONE]}
    assert not cluster.drop_pod(pod("x", "node-b").ref)
    assert held(cluster.peers) == {}


def test_in_the_host_s_network_a_pod_is_no_peer():
    cluster = Cluster("node-a")
    cluster.set_pod(pod("x", "node-b", host=True))
    assert held(cluster.peers) == {}


@pytest.mark.parametrize("arrival", [0, 1])
def test_a_pod_that_moves_here_is_not_lost_whichever_is_told_first(arrival: int):
    """What was told of another node's pod is taken back apart from what is told of ours."""
    cluster = Cluster("node-a")
    cluster.peers.set(peer("x"))
    moves = [lambda: cluster.set_pod(pod("x", "node-a")), lambda: cluster.peers.drop(peer("x").ref)]
    for move in (moves[arrival], moves[1 - arrival]):
        move()
    assert list(cluster.pods) == [pod("x", "node-a").ref]
    assert held(cluster.peers) == {("default", WEB): [ONE]}


@pytest.mark.parametrize("arrival", [0, 1])
def test_a_pod_that_moves_away_is_not_lost_whichever_is_told_first(arrival: int):
    cluster = Cluster("node-a")
    cluster.set_pod(pod("x", "node-a"))
    moves = [lambda: cluster.drop_pod(pod("x", "node-a").ref), lambda: cluster.peers.set(peer("x"))]
    for move in (moves[arrival], moves[1 - arrival]):
        move()
    assert cluster.pods == {}
    assert held(cluster.peers) == {("default", WEB): [ONE]}
