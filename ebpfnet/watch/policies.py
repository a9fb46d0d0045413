"""A NetworkPolicy's spec to a fact: the API's defaults, and what the API's validation would refuse, by field.

Source: ``networking.k8s.io/v1`` types and ``pkg/apis/networking/validation`` of Kubernetes. ``null`` and ``[]`` mean
the same in every list of it: rules ``[]`` allow nothing, ``from: []`` is everybody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ebpfnet.model.facts import IPBlock, NetworkPolicy, PodPeer, PolicyPort, PolicyRule, Ref
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.watch import schema
from ebpfnet.watch.fields import BadField, parse_network, parse_port, parse_protocol

DIRECTIONS = ("Ingress", "Egress")
Rules = Sequence[schema.NetworkPolicyIngressRule | schema.NetworkPolicyEgressRule]

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX = r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
_KEY = re.compile(f"({_PREFIX})?{_NAME}")
_VALUE = re.compile(f"({_NAME})?")
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def convert_policy(ref: Ref, spec: schema.NetworkPolicySpec) -> NetworkPolicy:
    """Return a policy as a fact; raises ``BadField``."""
    ingress = _rules(spec.ingress or (), "spec.ingress", "from")
    egress = _rules(spec.egress or (), "spec.egress", "to")
    types = _types(spec)
    return NetworkPolicy(
        ref,
        _selector(spec.pod_selector, "spec.podSelector") or EVERYTHING,
        ingress if "Ingress" in types else None,
        egress if "Egress" in types else None,
    )


def _types(spec: schema.NetworkPolicySpec) -> Sequence[str]:
    """Return the directions: those that are named; else ingress, and egress when there are rules for it."""
    for index, text in enumerate(spec.policy_types or ()):
        if text not in DIRECTIONS:
            raise BadField(f"spec.policyTypes[{index}]", f"{text!r} is not Ingress or Egress")
    return spec.policy_types or DIRECTIONS[: 2 if spec.egress else 1]


def _rules(rules: Rules, field: str, end: str) -> tuple[PolicyRule, ...]:
    return tuple(
        PolicyRule(
            tuple(_peer(peer, f"{field}[{at}].{end}[{index}]") for index, peer in enumerate(rule.peers or ())),
            tuple(_port(port, f"{field}[{at}].ports[{index}]") for index, port in enumerate(rule.ports or ())),
        )
        for at, rule in enumerate(rules)
    )


def _peer(peer: schema.NetworkPolicyPeer, field: str) -> PodPeer | IPBlock:
    pods = _selector(peer.pod_selector, f"{field}.podSelector")
    namespaces = _selector(peer.namespace_selector, f"{field}.namespaceSelector")
    if peer.ip_block is not None:
        if pods is not None or namespaces is not None:
            raise BadField(field, "ipBlock excludes podSelector and namespaceSelector")
        return _block(peer.ip_block, f"{field}.ipBlock")
    if pods is None and namespaces is None:
        raise BadField(field, "none of podSelector, namespaceSelector and ipBlock")
    return PodPeer(EVERYTHING if pods is None else pods, namespaces)


def _block(block: schema.IPBlockObject, field: str) -> IPBlock:
    cidr = parse_network(block.cidr, f"{field}.cidr")
    excepts = []
    for index, text in enumerate(block.excepts or ()):
        inner = parse_network(text, f"{field}.except[{index}]")
        if inner.version != cidr.version or inner.prefixlen <= cidr.prefixlen or inner.network_address not in cidr:
            raise BadField(f"{field}.except[{index}]", f"{text} is not a part of {cidr}")
        excepts.append(inner)
    return IPBlock(cidr, tuple(excepts))


def _port(port: schema.NetworkPolicyPort, field: str) -> PolicyPort:
    protocol = parse_protocol(port.protocol, f"{field}.protocol")
    if isinstance(port.port, int):
        first = parse_port(port.port, f"{field}.port")
        last = first if port.end_port is None else parse_port(port.end_port, f"{field}.endPort")
        if last < first:
            raise BadField(f"{field}.endPort", f"{last} is less than port {first}")
        return PolicyPort(protocol, first, last)
    if port.end_port is not None:
        raise BadField(f"{field}.endPort", "needs a port that is a number")
    if port.port is None:
        return PolicyPort(protocol)
    if not _PORT_NAME.fullmatch(port.port):
        text = "is not a port's name (at most 15 lower-case letters, digits and '-', one letter at least)"
        raise BadField(f"{field}.port", f"{port.port!r} {text}")
    return PolicyPort(protocol, 0, 0, port.port)


def _selector(given: schema.LabelSelector | None, field: str) -> Selector | None:
    """Return a selector in one order, so that equal ones are equal; None for none, which is not an empty one."""
    if given is None:
        return None
    wanted = [
        Requirement(_key(key, f"{field}.matchLabels"), frozenset((_value(value, f"{field}.matchLabels[{key}]"),)))
        for key, value in (given.match_labels or {}).items()
    ]
    wanted += [
        _requirement(each, f"{field}.matchExpressions[{index}]")
        for index, each in enumerate(given.match_expressions or ())
    ]
    return Selector(tuple(sorted(set(wanted), key=lambda r: (r.key, r.negated, sorted(r.values or ())))))


def _requirement(given: schema.LabelRequirement, field: str) -> Requirement:
    key, values = _key(given.key, f"{field}.key"), given.values or []
    negated = given.operator in {"NotIn", "DoesNotExist"}
    match given.operator:
        case "In" | "NotIn":
            if not values:
                raise BadField(f"{field}.values", f"missing, with operator {given.operator}")
            for index, value in enumerate(values):
                _value(value, f"{field}.values[{index}]")
            return Requirement(key, frozenset(values), negated)
        case "Exists" | "DoesNotExist":
            if values:
                raise BadField(f"{field}.values", f"not allowed with operator {given.operator}")
            return Requirement(key, None, negated)
    raise BadField(f"{field}.operator", f"{given.operator!r} is not In, NotIn, Exists or DoesNotExist")


def _key(text: str, field: str) -> str:
    if not _KEY.fullmatch(text):
        raise BadField(field, f"{text!r} is not a label's key")
    return text


def _value(text: str, field: str) -> str:
    if not _VALUE.fullmatch(text):
        raise BadField(field, f"{text!r} is not a label's value")
    return text
