"""What the compiled rules say about a connection, in the oracle's words.

Cells are made in the plainest way: every predicate is asked of every address. The verdict is read from the entries of
``rules`` and ``rule_ports`` as the datapath reads them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ebpfnet import abi
from ebpfnet.compile.policy.entries import rule_entries
from ebpfnet.compile.policy.predicates import HasPort, NodesWhere, PodsWhere, Predicate, Within
from ebpfnet.compile.policy.regime import Parts, Regime, regime
from ebpfnet.compile.policy.statements import Numbers, PortName
from ebpfnet.compile.policy.subjects import subject_of
from ebpfnet.model.facts import (
    ClusterNetworkPolicy,
    Fact,
    IPAddress,
    Kind,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Policy,
    Ref,
)
from ebpfnet.watch.decode import decode
from tests.policy_oracle import ALLOWED, Answer, Flow, Manifest

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}
WORDS = {abi.Verdict.ALLOW: "allow", abi.Verdict.DENY: "deny", abi.Verdict.AUDIT: "audit"}


def facts_of(manifests: Iterable[Manifest]) -> list[Fact]:
    """Return what is decoded of manifests; each must be usable."""
    found = []
    for item in manifests:
        decoded = decode(item)
        assert decoded.fact is not None, (decoded.problems, item)
        assert not getattr(decoded.fact, "refused", False), (decoded.problems, item)
        found.append(decoded.fact)
    return found


def look_up(rule: abi.Rule, entries: dict[bytes, bytes], protocol: int, port: int) -> abi.Rule:
    """Return the rule for a port: the longest prefix that is there, as the datapath finds it."""
    if protocol in {6, 17, 132}:
        for length in range(16, -1, -1):
            masked = port >> (16 - length) << (16 - length)
            value = entries.get(abi.PortRange(rule.ports, masked, length, protocol).pack())
            if rule.lengths >> length & 1 and value is not None:
                return abi.Rule.unpack(value)
    return rule


class Verdicts:
    """What is compiled of a cluster, asked as the oracle is."""

    def __init__(self, manifests: Iterable[Manifest], *, graceful: bool = False) -> None:
        self.facts = facts_of(manifests)
        self.graceful = graceful
        self.nodes = [each for each in self.facts if isinstance(each, Node)]
        self.namespaces = {each.ref.name: each.labels for each in self.facts if isinstance(each, Namespace)}
        self.policies: dict[Ref, Policy] = {
            each.ref: each for each in self.facts if isinstance(each, NetworkPolicy | ClusterNetworkPolicy)
        }
        pods = [each for each in self.facts if isinstance(each, Pod) and not each.host_network]
        self.pods: dict[IPAddress, Pod] = {address: pod for pod in pods for address in pod.addresses}
        self.numbers = self._numbers()
        self.parts = Parts()
        self.regimes: dict[tuple[Ref, abi.Direction], Regime | None] = {}

    def egress(self, flow: Flow) -> Answer:
        """Say what the source's policies come to."""
        pod = self.pods.get(ipaddress.ip_address(flow.source))
        if pod is None or flow.source == flow.destination:
            return ALLOWED
        return self._judge(pod, abi.Direction.EGRESS, flow.destination, flow)

    def ingress(self, flow: Flow) -> Answer:
        """Say what the destination's policies come to; its own node passes."""
        pod = self.pods.get(ipaddress.ip_address(flow.destination))
        if pod is None or flow.source == flow.destination:
            return ALLOWED
        node = next(each for each in self.nodes if each.ref == Ref(Kind.NODE, "", pod.node))
        if ipaddress.ip_address(flow.source) in (*node.addresses, *node.outer):
            return ALLOWED
        return self._judge(pod, abi.Direction.INGRESS, flow.source, flow)

    def regime(self, pod: Pod, direction: abi.Direction) -> Regime | None:
        """Return what a pod is under."""
        key = (pod.ref, direction)
        if key not in self.regimes:
            network = [each for each in self.policies.values() if isinstance(each, NetworkPolicy)]
            wide = [each for each in self.policies.values() if isinstance(each, ClusterNetworkPolicy)]
            subject = subject_of(pod, self.namespaces[pod.ref.namespace], network, wide)
            self.regimes[key] = None
            if subject is not None:
                self.regimes[key] = regime(
                    subject, self.policies, direction, graceful=self.graceful, numbers=self.numbers, parts=self.parts
                )
        return self.regimes[key]

    def cell(self, under: Regime, address: IPAddress) -> frozenset[Predicate]:
        """Return which predicates of a regime an address answers with yes."""
        return frozenset(each for each in under.predicates if self._answers(each, address))

    def _judge(self, pod: Pod, direction: abi.Direction, peer: str, flow: Flow) -> Answer:
        under = self.regime(pod, direction)
        if under is None:
            return ALLOWED
        value, entries = rule_entries(under.outcome(self.cell(under, ipaddress.ip_address(peer))))
        rule = look_up(abi.Rule.unpack(value), entries, PROTOCOLS[flow.protocol], flow.port)
        by = frozenset([under.names[rule.id]] if rule.id else [])
        return Answer(WORDS[rule.verdict], by, bool(rule.flags & abi.RuleFlag.GRACEFUL))

    def _answers(self, predicate: Predicate, address: IPAddress) -> bool:
        pod = self.pods.get(address)
        match predicate:
            case Within(block):
                return address in block
            case NodesWhere(nodes):
                return any(
                    nodes.matches(node.labels) and address in (*node.addresses, *node.outer) for node in self.nodes
                )
            case PodsWhere():
                return pod is not None and predicate.means(
                    pod.ref.namespace, self.namespaces[pod.ref.namespace], pod.labels
                )
            case HasPort(name, protocol, port):
                have = {(each.name, each.protocol, each.port) for each in pod.ports} if pod else ()
                return (name, protocol, port) in have

    def _numbers(self) -> Numbers:
        found: dict[PortName, frozenset[int]] = {}
        for pod in self.pods.values():
            for each in pod.ports:
                key = (each.name, each.protocol)
                found[key] = found.get(key, frozenset()) | {each.port}
        return found
