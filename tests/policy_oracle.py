"""What policies must do to a connection, written a second time from the API's own text. Imports nothing of ours.

``networking.k8s.io/v1`` types.go, ``policy.networking.k8s.io/v1alpha2`` clusternetworkpolicy_types.go, KEP-2091 and
NPEP-187 (named ports of any protocol). Slow and short: every question goes through every policy. Of ours it knows the
two annotations and how rules are called for people. Objects are manifests that an API server would take.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, NamedTuple

Manifest = dict[str, Any]
MODE, ESTABLISHED = "ebpfnet.io/policy-mode", "ebpfnet.io/established"
PEERS = {"from": {"namespaces", "pods"}, "to": {"namespaces", "pods", "nodes", "networks"}}


class Answer(NamedTuple):
    """``verdict`` allow, deny or audit. ``by``: any of these texts is right; none: no policy decided."""

    verdict: str
    by: frozenset[str] = frozenset()
    graceful: bool = False


ALLOWED = Answer("allow")


class Flow(NamedTuple):
    """A connection, or an echo request (``ICMP``, port 0), after translation; addresses in canonical spelling."""

    source: str
    destination: str
    protocol: str
    port: int


class Ends(NamedTuple):
    """A direction: whose policies are asked, about whom, and the pod (or None) that has the port."""

    direction: str
    pod: Manifest
    peer: str
    flow: Flow


class Oracle:
    """Answers for one cluster. ``graceful``: what counts for policies that do not say."""

    def __init__(self, manifests: Iterable[Manifest], *, graceful: bool = False) -> None:
        items = list(manifests)
        self.graceful = graceful
        self.nodes = [item for item in items if item["kind"] == "Node"]
        self.namespaces = {item["metadata"]["name"]: _labels(item) for item in items if item["kind"] == "Namespace"}
        self.policies = [item for item in items if item["kind"] == "NetworkPolicy"]
        self.cluster_policies = [item for item in items if item["kind"] == "ClusterNetworkPolicy"]
        # "Note that host-networked pods are not included in subject selection", nor in peers; over is over.
        self.pods: dict[str, Manifest] = {}
        for item in items:
            if (
                item["kind"] == "Pod"
                and not _hosted(item)
                and item["status"].get("phase") not in {"Succeeded", "Failed"}
            ):
                for entry in item["status"].get("podIPs") or ():
                    self.pods[_canonical(entry["ip"])] = item

    def ask(self, flow: Flow) -> Answer:
        """Say what happens: egress of the source, then ingress of the destination; the first that denies is why."""
        egress, ingress = self.egress(flow), self.ingress(flow)
        for verdict in ("deny", "audit"):
            for each in (egress, ingress):
                if each.verdict == verdict:
                    return each
        return ingress if ingress.by else egress

    def egress(self, flow: Flow) -> Answer:
        """Say what the source's policies come to."""
        pod = self.pods.get(flow.source)
        if pod is None or flow.source == flow.destination:  # "a Pod cannot block access to itself"
            return ALLOWED
        return self._judge(Ends("egress", pod, flow.destination, flow))

    def ingress(self, flow: Flow) -> Answer:
        """Say what the destination's policies come to. "OR if the traffic source is the pod's local node"."""
        pod = self.pods.get(flow.destination)
        if pod is None or flow.source == flow.destination or self._is_node(flow.source, pod["spec"]["nodeName"]):
            return ALLOWED
        return self._judge(Ends("ingress", pod, flow.source, flow))

    # One direction

    def _judge(self, ends: Ends) -> Answer:
        """An audited policy is as if it did not exist, but what it would have denied is told."""
        enforced = self._tiers(ends, [each for each in self._selecting(ends.pod) if not _audited(each)])
        full = self._tiers(ends, self._selecting(ends.pod))
        if enforced.verdict == "allow" and full.verdict == "deny":
            return Answer("audit", full.by)
        return enforced

    def _selecting(self, pod: Manifest) -> list[Manifest]:
        found = [
            each
            for each in self.policies
            if _namespace(each) == _namespace(pod) and selects(each["spec"].get("podSelector") or {}, _labels(pod))
        ]
        return found + [each for each in self.cluster_policies if self._means(each["spec"]["subject"], pod)]

    def _tiers(self, ends: Ends, policies: list[Manifest]) -> Answer:
        answer = self._tier(ends, policies, "Admin")
        if answer is not None:
            return answer
        isolating = [each for each in policies if each["kind"] == "NetworkPolicy" and _isolates(each, ends.direction)]
        if isolating:
            return self._network_policies(ends, isolating)
        return self._tier(ends, policies, "Baseline") or ALLOWED

    def _tier(self, ends: Ends, policies: list[Manifest], tier: str) -> Answer | None:
        """Return what the first matching rule says, None for a Pass and when none matches."""
        chosen = [each for each in policies if each["kind"] == "ClusterNetworkPolicy" and each["spec"]["tier"] == tier]
        for policy in sorted(chosen, key=lambda each: (each["spec"]["priority"], each["metadata"]["name"])):
            for index, rule in enumerate(policy["spec"].get(ends.direction) or ()):
                action = self._action(ends, rule)
                if action == "Pass":
                    return None
                if action is not None:
                    name = f" ({rule['name']})" if rule.get("name") else ""
                    whole = f"ClusterNetworkPolicy {policy['metadata']['name']} ({tier})"
                    text = f"{whole}, {ends.direction}[{index}]{name}"
                    if action == "Accept":
                        return Answer("allow", frozenset([text]))
                    return Answer("deny", frozenset([text]), self._graceful(policy))
        return None

    def _action(self, ends: Ends, rule: Manifest) -> str | None:
        """Return what a rule does here, None where it does not match. An unknown peer fails closed."""
        end = "from" if ends.direction == "ingress" else "to"
        if any(not peer or peer.keys() - PEERS[end] for peer in rule[end]):
            return None if rule["action"] == "Accept" else "Deny"
        if any(self._is_peer(peer, ends.peer) for peer in rule[end]) and self._has_protocol(rule, ends.flow):
            return str(rule["action"])
        return None

    def _network_policies(self, ends: Ends, policies: list[Manifest]) -> Answer:
        allowing = set()
        for policy in policies:
            for index, rule in enumerate(policy["spec"].get(ends.direction) or ()):
                # "If this field is empty or missing, this rule matches all sources (traffic not restricted by source)."
                peers, ports = rule.get("from" if ends.direction == "ingress" else "to"), rule.get("ports")
                if peers and not any(self._is_network_peer(policy, peer, ends.peer) for peer in peers):
                    continue
                if not ports or any(self._is_port(port, ends.flow) for port in ports):
                    allowing.add(f"NetworkPolicy {_name(policy)}, {ends.direction}[{index}]")
        if allowing:
            return Answer("allow", frozenset(allowing))
        names = ", ".join(sorted(_name(policy) for policy in policies))
        graceful = all(self._graceful(policy) for policy in policies)
        return Answer("deny", frozenset([f"isolated for {ends.direction} by NetworkPolicy {names}"]), graceful)

    def _graceful(self, policy: Manifest) -> bool:
        said = (policy["metadata"].get("annotations") or {}).get(ESTABLISHED)
        return self.graceful if said is None else said == "graceful"

    # Peers

    def _is_network_peer(self, policy: Manifest, peer: Manifest, address: str) -> bool:
        if block := peer.get("ipBlock"):
            return _within(address, block["cidr"]) and not any(
                _within(address, each) for each in block.get("except") or ()
            )
        pod = self.pods.get(address)
        if pod is None:
            return False
        # "If PodSelector is also set, then ... as a whole selects the pods ... Otherwise it selects all pods"
        namespaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
        if namespaces is None and _namespace(pod) != _namespace(policy):
            return False
        if namespaces is not None and not self._in_namespace(namespaces, pod):
            return False
        return pods is None or selects(pods, _labels(pod))

    def _is_peer(self, peer: Manifest, address: str) -> bool:
        if "networks" in peer:
            return any(_within(address, each) for each in peer["networks"])
        if "nodes" in peer:
            return any(selects(peer["nodes"], _labels(node)) and address in _addresses(node) for node in self.nodes)
        pod = self.pods.get(address)
        return pod is not None and self._means(peer, pod)

    def _means(self, given: Manifest, pod: Manifest) -> bool:
        """Return whether a subject, or a peer that is given like one, means a pod."""
        if "namespaces" in given:
            return self._in_namespace(given["namespaces"], pod)
        both = given["pods"]
        return self._in_namespace(both["namespaceSelector"], pod) and selects(both["podSelector"], _labels(pod))

    def _in_namespace(self, selector: Manifest, pod: Manifest) -> bool:
        return selects(selector, self.namespaces[_namespace(pod)])

    def _is_node(self, address: str, name: str) -> bool:
        return any(address in _addresses(node) for node in self.nodes if node["metadata"]["name"] == name)

    # Ports

    def _is_port(self, given: Manifest, flow: Flow) -> bool:
        """No protocol "defaults to TCP"; no port "matches all port names and numbers"."""
        if (given.get("protocol") or "TCP") != flow.protocol:
            return False
        port = given.get("port")
        if port is None:
            return True
        if isinstance(port, str):
            return self._is_called(flow, port)
        return bool(port <= flow.port <= (given.get("endPort") or port))

    def _has_protocol(self, rule: Manifest, flow: Flow) -> bool:
        for each in rule.get("protocols") or ():
            if name := each.get("destinationNamedPort"):
                if self._is_called(flow, name):
                    return True
                continue
            port = (each.get(flow.protocol.lower()) or {}).get("destinationPort")
            if port and "number" in port and port["number"] == flow.port:
                return True
            if port and "range" in port and port["range"]["start"] <= flow.port <= port["range"]["end"]:
                return True
        return not rule.get("protocols")

    def _is_called(self, flow: Flow, name: str) -> bool:
        pod = self.pods.get(flow.destination)
        containers = pod["spec"].get("containers") or () if pod else ()
        have = [(each.get("name"), each.get("protocol") or "TCP", each["containerPort"])
                for container in containers for each in container.get("ports") or ()]  # fmt: skip
        return (name, flow.protocol, flow.port) in have


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """``metav1.LabelSelector``: all of matchLabels and matchExpressions; an empty one selects everything."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or ():
        key, operator, values = each["key"], each["operator"], each.get("values") or []
        if operator == "In" and (key not in labels or labels[key] not in values):
            return False
        if operator == "NotIn" and key in labels and labels[key] in values:
            return False
        if (operator == "Exists" and key not in labels) or (operator == "DoesNotExist" and key in labels):
            return False
    return True


def _isolates(policy: Manifest, direction: str) -> bool:
    """ "If this field is not specified, it will default based on the existence of ingress or egress rules;
    policies that contain an egress section are assumed to affect egress, and all policies (whether or not they contain
    an ingress section) are assumed to affect ingress."."""
    types = policy["spec"].get("policyTypes")
    if not types:
        types = ["Ingress", "Egress"] if policy["spec"].get("egress") else ["Ingress"]
    return direction.capitalize() in types


def _audited(policy: Manifest) -> bool:
    return (policy["metadata"].get("annotations") or {}).get(MODE) == "audit"


def _within(address: str, block: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(block)


def _hosted(pod: Manifest) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def _addresses(node: Manifest) -> list[str]:
    return [_canonical(each["address"]) for each in node["status"]["addresses"]]


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _labels(item: Manifest) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def _namespace(item: Manifest) -> str:
    return str(item["metadata"]["namespace"])


def _name(item: Manifest) -> str:
    return f"{_namespace(item)}/{item['metadata']['name']}"
