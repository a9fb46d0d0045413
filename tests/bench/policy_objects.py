"""A cluster with 10,000 policies and 150,000 pods, as facts made from numbers: what the `policy` benchmark runs on.

Teams have namespaces; policies allow applications of their own namespace and of others, named ports and blocks.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator

from ebpfnet import abi
from ebpfnet.model.facts import (
    Fact,
    IPBlock,
    Kind,
    Namespace,
    NetworkPolicy,
    Peer,
    Pod,
    PodPeer,
    PolicyPort,
    PolicyRule,
    Ref,
)
from ebpfnet.model.labels import Labels, Requirement, Selector
from ebpfnet.model.peers import pack

HERE = "node-0"
NAMESPACES, APPS, PODS, LOCAL, POLICIES = 500, 20, 150_000, 110, 10_000
TCP = abi.Protocol.TCP
FIRST = int(ipaddress.IPv4Address("10.0.0.0"))


def address(number: int) -> ipaddress.IPv4Address:
    """Return the address of a pod."""
    return ipaddress.IPv4Address(FIRST + number)


def equals(key: str, value: str) -> Selector:
    """Return what selects labels with a value."""
    return Selector((Requirement(key, frozenset((value,))),))


def labels(number: int) -> Labels:
    """Return the labels of a pod: of its application, and two that policies seldom speak of."""
    app = number // NAMESPACES % APPS
    return ("app", f"app-{app:02}"), ("pod-template-hash", f"{app * 7919:x}"), ("version", f"v{app % 3}")


def team(number: int) -> str:
    """Return the namespace of a pod."""
    return f"team-{number % NAMESPACES:03}"


def peer(number: int, at: int | None = None, name: str = "pod") -> Peer:
    """Return a pod of another node, or (``at``, ``name``) one more like it."""
    raw = pack(address(number if at is None else at))
    return Peer(Ref(Kind.PEER, team(number), f"{name}-{number}"), labels(number), raw)


def selecting(number: int) -> int:
    """Return the number of a policy that selects a pod."""
    return number % NAMESPACES + NAMESPACES * (number // NAMESPACES % APPS)


def pod(number: int) -> Pod:
    """Return a pod of this node."""
    ref = Ref(Kind.POD, team(number), f"pod-{number}")
    return Pod(ref, HERE, (address(number),), labels(number), (), host_network=False)


def policy(number: int, salt: int = 0) -> NetworkPolicy:
    """Return a policy for one application, with four peers; another ``salt``, other peers."""
    dice = random.Random(number * 1_000 + salt)
    name = f"team-{number % NAMESPACES:03}"
    app = f"app-{number // NAMESPACES % APPS:02}"
    peers: list[PodPeer | IPBlock] = [PodPeer(equals("app", f"app-{dice.randrange(APPS):02}")) for _ in range(2)]
    there = equals("kubernetes.io/metadata.name", f"team-{dice.randrange(NAMESPACES):03}")
    peers.append(PodPeer(equals("app", f"app-{dice.randrange(APPS):02}"), there))
    peers.append(IPBlock(ipaddress.IPv4Network((f"192.168.{dice.randrange(256)}.0", 24))))
    port = PolicyPort(TCP, 8080, 8090)
    rules = (PolicyRule(tuple(peers[:2])), PolicyRule(tuple(peers[2:]), (port,)))
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, name, f"policy-{number}"), equals("app", app), rules)


def facts() -> Iterator[Fact]:
    """Yield the cluster, as a source would."""
    for number in range(NAMESPACES):
        name = f"team-{number:03}"
        yield Namespace(Ref(Kind.NAMESPACE, "", name), (("kubernetes.io/metadata.name", name),))
    yield from map(policy, range(POLICIES))
    local = set(locals_())
    for number in range(PODS):
        yield pod(number) if number in local else peer(number)


def locals_() -> range:
    """Return the numbers of this node's pods."""
    return range(0, PODS, PODS // LOCAL + 1)


DISTINCT, EACH = 250, 50


def heavy(number: int, salt: int = 0) -> NetworkPolicy:
    """Return one of 250 policies for one endpoint, with 50 rules of one block each."""
    rules = tuple(
        PolicyRule((IPBlock(ipaddress.IPv4Network((FIRST + (1 << 23) + (number * 100 + index + salt) * 16, 28))),))
        for index in range(EACH)
    )
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, "heavy", f"policy-{number}"), Selector(), rules)
