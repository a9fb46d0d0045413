"""A ClusterNetworkPolicy to its fact: what the validation of its CRD would refuse, by field, and what that leaves out.

A peer of a kind that is not known here shuts its whole rule, as the API asks for: "treat the rule as matching no
traffic" (Accept), "treat the rule as a 'Deny all' rule" (Deny, Pass). Anything else that can't be obeyed refuses the
policy (``refused.py``). Source: ``apis/v1alpha2/clusternetworkpolicy_types.go`` of kubernetes-sigs/network-policy-api,
its validation markers and CEL rules; label selectors, that a CRD does not look into, are validated as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ebpfnet import abi
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    IPBlock,
    NodePeer,
    PodPeer,
    PolicyPort,
    Problem,
    Ref,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, NOTHING, Selector
from ebpfnet.watch import policy_schema as schema
from ebpfnet.watch.fields import BadField, Decoded, parse_network, parse_port
from ebpfnet.watch.policies import modes_of, parse_port_name
from ebpfnet.watch.refused import PRIORITY_MAX, TIERS
from ebpfnet.watch.selectors import convert_selector
from ebpfnet.watch.words import explain

SOME_MAX = 25
"""Rules of a direction, peers and protocols of a rule, networks of a peer."""

NAME_MAX = 100
CIDR_MAX = 43
ACTIONS = {"Accept": Action.ACCEPT, "Deny": Action.DENY, "Pass": Action.PASS}
PEERS = {"from": ("namespaces", "pods"), "to": ("namespaces", "pods", "nodes", "networks")}
EXPERIMENTAL = {"domainNames": "names of domains are experimental and not supported"}
PROTOCOLS = {"tcp": abi.Protocol.TCP, "udp": abi.Protocol.UDP, "sctp": abi.Protocol.SCTP}
NOBODY = PodPeer(NOTHING, EVERYTHING)

Peer = PodPeer | IPBlock | NodePeer
Rule = schema.ClusterIngressRule | schema.ClusterEgressRule
Name = Callable[[str, str], None]
"""Takes a field and what is wrong with it, where the rest of the policy is obeyed."""


def convert_cluster_policy(ref: Ref, item: schema.ClusterNetworkPolicyObject) -> Decoded:
    """Return a cluster's policy as a fact; raises ``BadField``."""
    spec, modes = item.spec, modes_of(ref, item.metadata.annotations or {})
    problems = list(modes.problems)

    def name(field: str, reason: str) -> None:
        problems.append(Problem(ref, field, reason))

    fact = ClusterNetworkPolicy(
        ref,
        _tier(spec.tier),
        _priority(spec.priority),
        *_subject(spec.subject),
        _rules(spec.ingress or (), "spec.ingress", "from", name),
        _rules(spec.egress or (), "spec.egress", "to", name),
        modes.audited,
        modes.graceful,
        generation=item.metadata.version,
    )
    return Decoded(ref, fact, tuple(problems))


def _tier(text: str) -> Tier:
    if text not in TIERS:
        raise BadField("spec.tier", f"{text!r} is not Admin or Baseline")
    return TIERS[text]


def _priority(number: int) -> int:
    if not 0 <= number <= PRIORITY_MAX:
        raise BadField("spec.priority", f"{number} is not a priority (0 to {PRIORITY_MAX})")
    return number


def _subject(subject: schema.ClusterSubject) -> tuple[Selector, Selector]:
    """Return the selectors of namespaces and pods."""
    _one_of({"namespaces": subject.namespaces, "pods": subject.pods}, "spec.subject")
    if subject.pods is not None:
        peer = _pods(subject.pods, "spec.subject.pods")
        return peer.namespaces or EVERYTHING, peer.pods
    assert subject.namespaces is not None
    return convert_selector(subject.namespaces, "spec.subject.namespaces"), EVERYTHING


def _rules(rules: Sequence[Rule], field: str, end: str, name: Name) -> tuple[ClusterRule, ...]:
    if len(rules) > SOME_MAX:
        raise BadField(field, f"{len(rules)} rules, of {SOME_MAX} at most")
    return tuple(_rule(rule, f"{field}[{index}]", end, name) for index, rule in enumerate(rules))


def _rule(rule: Rule, field: str, end: str, name: Name) -> ClusterRule:
    called = rule.name or ""
    if len(called) > NAME_MAX:
        raise BadField(f"{field}.name", f"{len(called)} characters long, of {NAME_MAX} at most")
    action = ACTIONS.get(rule.action)
    if action is None:
        raise BadField(f"{field}.action", f"{rule.action!r} is not Accept, Deny or Pass")
    _bounded(rule.peers, f"{field}.{end}")
    shut = "its rule accepts nothing" if action == Action.ACCEPT else "its rule denies everything"
    peers: list[Peer] = []
    places: list[str] = []
    closed = False
    for index, each in enumerate(rule.peers):
        where = f"{field}.{end}[{index}]"
        if reason := _unknown(each, PEERS[end]):
            name(where, f"{reason}: {shut}")
            closed = True
        else:
            found = _peer(each, where)
            peers += found
            places += _places(index, each, found)
    ports = _ports(rule, field, any("networks" in each or "nodes" in each for each in rule.peers))
    if not closed:
        several = tuple(places) if any("." in place for place in places) else ()
        return ClusterRule(called, action, tuple(peers), ports, several)
    return (
        ClusterRule(called, action, (NOBODY,), ports) if action == Action.ACCEPT else ClusterRule(called, Action.DENY)
    )


def _places(index: int, given: Mapping[str, Any], found: Sequence[Peer]) -> list[str]:
    """Return where in the list of peers what was made of one of them is: each network is a peer of its own here."""
    many = given.get("networks") is not None
    return [f"[{index}].networks[{at}]" if many else f"[{index}]" for at in range(len(found))]


def _unknown(given: Mapping[str, Any], known: Sequence[str]) -> str:
    """Say why a peer is of a kind that is not known; empty when it is of one that is."""
    for key, value in given.items():
        if value is not None and key not in known:
            return EXPERIMENTAL.get(key, f"there is no peer {key!r} here")
    return "" if any(value is not None for value in given.values()) else f"none of {', '.join(known)}"


def _peer(given: Mapping[str, Any], field: str) -> tuple[Peer, ...]:
    _one_of(given, field)
    try:
        peer = msgspec.convert(given, schema.ClusterPeer)
    except msgspec.ValidationError as error:
        inner, reason = explain(str(error))
        raise BadField(f"{field}.{inner}", reason) from error
    if peer.namespaces is not None:
        return (PodPeer(EVERYTHING, convert_selector(peer.namespaces, f"{field}.namespaces")),)
    if peer.pods is not None:
        return (_pods(peer.pods, f"{field}.pods"),)
    if peer.nodes is not None:
        return (NodePeer(convert_selector(peer.nodes, f"{field}.nodes")),)
    return _networks(peer.networks or (), f"{field}.networks")


def _pods(given: schema.NamespacedPod, field: str) -> PodPeer:
    namespaces = given.namespace_selector or schema.LabelSelector()
    return PodPeer(
        convert_selector(given.pod_selector, f"{field}.podSelector"),
        convert_selector(namespaces, f"{field}.namespaceSelector"),
    )


def _networks(texts: Sequence[str], field: str) -> tuple[IPBlock, ...]:
    _bounded(texts, field)
    for index, text in enumerate(texts):
        if len(text) > CIDR_MAX:
            raise BadField(f"{field}[{index}]", f"{len(text)} characters long, of {CIDR_MAX} at most")
        if text in texts[:index]:
            raise BadField(f"{field}[{index}]", f"{text!r} stands there twice")
    return tuple(IPBlock(parse_network(text, f"{field}[{index}]")) for index, text in enumerate(texts))


def _ports(rule: Rule, field: str, beyond_pods: bool) -> tuple[PolicyPort, ...]:  # noqa: FBT001  # read in one place
    if rule.protocols is None:
        return ()
    _bounded(rule.protocols, f"{field}.protocols")
    ports = []
    for index, each in enumerate(rule.protocols):
        where = f"{field}.protocols[{index}]"
        if each.destination_named_port and beyond_pods:
            raise BadField(f"{where}.destinationNamedPort", "networks and nodes have no named ports")
        ports.append(_port(each, where))
    return tuple(ports)


def _port(given: schema.ClusterProtocol, field: str) -> PolicyPort:
    kinds = {name: getattr(given, name) for name in PROTOCOLS}
    kind = _one_of({**kinds, "destinationNamedPort": given.destination_named_port}, field)
    if kind == "destinationNamedPort":
        name = parse_port_name(given.destination_named_port or "", f"{field}.{kind}")
        return PolicyPort(0, 0, 0, name)
    port = kinds[kind].destination_port
    if port is None:
        raise BadField(f"{field}.{kind}.destinationPort", "missing")
    field = f"{field}.{kind}.destinationPort"
    if _one_of({"number": port.number, "range": port.range}, field) == "number":
        number = parse_port(port.number, f"{field}.number")
        return PolicyPort(PROTOCOLS[kind], number, number)
    first, last = parse_port(port.range.start, f"{field}.range.start"), parse_port(port.range.end, f"{field}.range.end")
    if first >= last:
        raise BadField(f"{field}.range.end", f"{last} is not more than start {first}")
    return PolicyPort(PROTOCOLS[kind], first, last)


def _one_of(given: Mapping[str, object], field: str) -> str:
    """Return the only name that has a value; raises ``BadField``."""
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise BadField(field, f"{' and '.join(found)} exclude each other" if found else f"none of {', '.join(given)}")
    return found[0]


def _bounded(items: Sequence[object], field: str) -> None:
    if not 1 <= len(items) <= SOME_MAX:
        raise BadField(field, f"{len(items)} items, of 1 to {SOME_MAX}" if items else "empty; at least one is needed")
