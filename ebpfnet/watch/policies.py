"""A NetworkPolicy to its fact: the API's defaults, and what the API's validation would refuse, by field.

What is refused here still isolates (``refused.py``). Source: ``networking.k8s.io/v1`` types and
``pkg/apis/networking/validation`` of Kubernetes. ``null`` and ``[]`` mean the same in every list of it: rules ``[]``
allow nothing, ``from: []`` is everybody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ebpfnet.model.facts import IPBlock, NetworkPolicy, PodPeer, PolicyPort, PolicyRule, Problem, Ref
from ebpfnet.model.labels import EVERYTHING, Selector
from ebpfnet.watch import policy_schema as schema
from ebpfnet.watch.fields import (
    OURS,
    BadField,
    Decoded,
    annotation,
    parse_network,
    parse_port,
    parse_protocol,
    unknown_annotations,
)
from ebpfnet.watch.selectors import convert_selector

DIRECTIONS = ("Ingress", "Egress")
MODE = f"{OURS}policy-mode"
ESTABLISHED = f"{OURS}established"
MODES = (None, "enforce", "audit")  # what is given may be anything, also what no set can hold
ESTABLISHED_MODES = (None, "strict", "graceful")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
Rules = Sequence[schema.NetworkPolicyIngressRule | schema.NetworkPolicyEgressRule]


class Modes(NamedTuple):
    """What the annotations of a policy of either kind say, and what they say that means nothing."""

    audited: bool
    graceful: bool | None
    problems: tuple[Problem, ...]


def modes_of(ref: Ref, given: Mapping[str, object]) -> Modes:
    """Read the annotations: a word that is not known is the stricter one."""
    problems = list(unknown_annotations(ref, given, MODE, ESTABLISHED))
    mode, established = given.get(MODE), given.get(ESTABLISHED)
    if mode not in MODES:
        problems.append(Problem(ref, annotation(MODE), f"{mode!r} is not enforce or audit; it is enforced"))
    if established not in ESTABLISHED_MODES:
        text = f"{established!r} is not strict or graceful; connections that it does not allow are dropped"
        problems.append(Problem(ref, annotation(ESTABLISHED), text))
    graceful = None if established is None else established == "graceful"
    return Modes(mode == "audit", graceful, tuple(problems))


def convert_policy(ref: Ref, item: schema.NetworkPolicyObject) -> Decoded:
    """Return a policy as a fact; raises ``BadField``."""
    spec, modes = item.spec or schema.NetworkPolicySpec(), modes_of(ref, item.metadata.annotations or {})
    ingress = _rules(spec.ingress or (), "spec.ingress", "from")
    egress = _rules(spec.egress or (), "spec.egress", "to")
    types = _types(spec)
    fact = NetworkPolicy(
        ref,
        _selector(spec.pod_selector, "spec.podSelector") or EVERYTHING,
        ingress if "Ingress" in types else None,
        egress if "Egress" in types else None,
        modes.audited,
        modes.graceful,
        generation=item.metadata.version,
    )
    return Decoded(ref, fact, modes.problems)


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
    return PolicyPort(protocol, 0, 0, parse_port_name(port.port, f"{field}.port"))


def parse_port_name(text: str, field: str) -> str:
    """Return a port's name (``IsValidPortName`` of apimachinery, RFC 6335 5.1); raises ``BadField``."""
    if not PORT_NAME.fullmatch(text):
        reason = "is not a port's name (at most 15 lower-case letters, digits and '-', one letter at least)"
        raise BadField(field, f"{text!r} {reason}")
    return text


def _selector(given: schema.LabelSelector | None, field: str) -> Selector | None:
    """Return a selector; None for none, which is not an empty one."""
    return None if given is None else convert_selector(given, field)
