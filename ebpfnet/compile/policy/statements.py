"""A policy to statements: what each of its rules says of whom, on which ports, and when in the order of the tiers.

Both kinds of policy become the same: a rule of a NetworkPolicy is an ``ACCEPT`` of the stage between the two tiers of
ClusterNetworkPolicy (``apis/v1alpha2/clusternetworkpolicy_types.go`` of kubernetes-sigs/network-policy-api, KEP-2091).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.names import shown
from ebpfnet.compile.policy.predicates import HasPort, NodesWhere, PodsWhere, Predicate, Within
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    IPBlock,
    NetworkPolicy,
    NodePeer,
    PodPeer,
    Policy,
    PolicyPort,
    PolicyRule,
    Tier,
)

PortName = tuple[str, int]
"""A port's name and its protocol."""

Numbers = Mapping[PortName, frozenset[int]]
"""What numbers a name means, for somebody."""

PROTOCOLS = (abi.Protocol.TCP, abi.Protocol.UDP, abi.Protocol.SCTP)
"""Those that have ports. A port's name without a protocol (0, ``destinationNamedPort``) is of any of them."""


class Stage(enum.IntEnum):
    """Who is asked first."""

    ADMIN = 0
    NAMESPACED = 1
    BASELINE = 2


class Clause(NamedTuple):
    """Peers that answer ``needs`` with yes and none of ``without``."""

    needs: Predicate
    without: frozenset[Predicate] = frozenset()


class Reach(NamedTuple):
    """Ports of a protocol; ``needs`` (a named port of the peer's) restricts them to peers that call them so."""

    protocol: int
    first: int
    last: int
    needs: HasPort | None = None


class Statement(NamedTuple):
    """A rule. ``clauses`` None: everybody is meant, else who is of one of them; ``ports`` None: all, and no ports, too.

    ``order``: within its stage the least comes first. ``rule`` is its id, ``text`` says it for people.
    """

    stage: Stage
    order: tuple[int, str, int]
    action: Action
    rule: int
    text: str
    clauses: tuple[Clause, ...] | None
    ports: tuple[Reach, ...] | None
    audited: bool
    graceful: bool | None


def rules_of(policy: Policy, direction: abi.Direction) -> tuple[PolicyRule | ClusterRule, ...] | None:
    """Return a policy's rules; None where it says nothing about a direction."""
    rules = policy.ingress if direction == abi.Direction.INGRESS else policy.egress
    return rules if isinstance(policy, NetworkPolicy) else rules or None


def port_names(policy: Policy, direction: abi.Direction) -> frozenset[PortName]:
    """Return the named ports whose numbers must be known."""
    named = {port for rule in rules_of(policy, direction) or () for port in rule.ports if port.name}
    return frozenset(each for port in named for each in _names(port))


def statements_of(policy: Policy, direction: abi.Direction, numbers: Numbers) -> tuple[Statement, ...]:
    """Return what a policy says; ``numbers`` are the subject's for ingress, those of all possible peers for egress."""
    place = _place_network if isinstance(policy, NetworkPolicy) else _place_cluster
    found = []
    for index, rule in enumerate(rules_of(policy, direction) or ()):
        stage, order, name, text = place(policy, direction, index, rule)
        found.append(
            Statement(
                stage,
                order,
                rule.action if isinstance(rule, ClusterRule) else Action.ACCEPT,
                abi.identify(name),
                shown(text),
                tuple(_clause(peer, policy.ref.namespace) for peer in rule.peers) or None,
                tuple(each for port in rule.ports for each in _reaches(port, direction, numbers))
                if rule.ports
                else None,
                policy.audited,
                policy.graceful,
            )
        )
    return tuple(found)


_Place = tuple[Stage, tuple[int, str, int], str, str]
"""Stage, order, what the rule's id is made of, and its text. The text has the rule's path in the manifest."""


def _place_network(policy: Policy, direction: abi.Direction, index: int, rule: PolicyRule | ClusterRule) -> _Place:
    """Rules for all ports come first: any that allows will do, and these need no entry for a port."""
    name, word = f"{policy.ref.namespace}/{policy.ref.name}", direction.name.lower()
    order = (1 if rule.ports else 0, name, index)
    text = f"NetworkPolicy {name}, {word}[{index}]"
    return Stage.NAMESPACED, order, f"rule NetworkPolicy {name} {word} {index}", text


def _place_cluster(policy: Policy, direction: abi.Direction, index: int, rule: PolicyRule | ClusterRule) -> _Place:
    """By priority; the API leaves open who comes first of equal ones: the name decides, on every node alike."""
    assert isinstance(policy, ClusterNetworkPolicy) and isinstance(rule, ClusterRule)  # noqa: PT018  # for the types
    name, word = policy.ref.name, direction.name.lower()
    tier = policy.tier.name.capitalize()
    stage = Stage.ADMIN if policy.tier == Tier.ADMIN else Stage.BASELINE
    text = f"ClusterNetworkPolicy {name} ({tier}), {'refused: ' if policy.refused else ''}{word}[{index}]"
    key = f"rule ClusterNetworkPolicy {tier} {name} {word} {index}{' refused' if policy.refused else ''} {rule.name}"
    order = (policy.priority, name, index)
    return stage, order, key, f"{text} ({rule.name})" if rule.name else text


def _clause(peer: PodPeer | IPBlock | NodePeer, namespace: str) -> Clause:
    match peer:
        case PodPeer(pods, None):
            return Clause(PodsWhere(namespace, None, pods))
        case PodPeer(pods, namespaces):
            return Clause(PodsWhere("", namespaces, pods))
        case IPBlock(cidr, excepts):
            return Clause(Within(cidr), frozenset(map(Within, excepts)))
        case NodePeer(nodes):
            return Clause(NodesWhere(nodes))


def _names(port: PolicyPort) -> Iterator[PortName]:
    for protocol in (port.protocol,) if port.protocol else PROTOCOLS:
        yield port.name, protocol


def _reaches(port: PolicyPort, direction: abi.Direction, numbers: Numbers) -> Iterator[Reach]:
    if not port.name:
        yield Reach(port.protocol, port.first, port.last)
        return
    for name, protocol in _names(port):
        for number in sorted(numbers.get((name, protocol), ())):
            peers = HasPort(name, protocol, number) if direction == abi.Direction.EGRESS else None
            yield Reach(protocol, number, number, peers)
