"""Rules as manifests say them: selectors as ``kubectl`` prints them, peers and ports by the names of their fields."""

from __future__ import annotations

from ebpfnet import abi
from ebpfnet.model.facts import ClusterRule, IPBlock, NetworkPolicy, NodePeer, PodPeer, Policy, PolicyPort, PolicyRule
from ebpfnet.model.labels import EVERYTHING, NOTHING, Requirement, Selector

ENDS = {abi.Direction.INGRESS: "from", abi.Direction.EGRESS: "to"}
EVERYBODY, NOBODY, UNREADABLE = "everybody", "nobody: it has a peer that is not known", "everybody: it can't be obeyed"
_ALL_PORTS = (0, 65535)


def rule_path(direction: abi.Direction, index: int) -> str:
    """Return where a rule is in its policy's spec: ``ingress[0]``."""
    return f"{direction.name.lower()}[{index}]"


def peer_path(direction: abi.Direction, index: int, rule: PolicyRule | ClusterRule, peer: int) -> str:
    """Return where a peer of a rule is in its spec: ``ingress[0].from[1]``, ``egress[2].to[0].networks[3]``."""
    places = rule.places if isinstance(rule, ClusterRule) else ()
    return f"{rule_path(direction, index)}.{ENDS[direction]}{places[peer] if places else f'[{peer}]'}"


def say_selector(selector: Selector) -> str:
    """Return a selector (``metav1.FormatLabelSelector``); one that selects everything is ``{}``."""
    return ",".join(map(_requirement, selector.requirements)) or "{}"


def _requirement(asked: Requirement) -> str:
    if asked.values is None:
        return f"!{asked.key}" if asked.negated else asked.key
    values = sorted(asked.values)
    if len(values) == 1 and not asked.negated:
        return f"{asked.key}={values[0]}"
    return f"{asked.key} {'notin' if asked.negated else 'in'} ({','.join(values)})"


def say_peer(peer: PodPeer | IPBlock | NodePeer, rule: PolicyRule | ClusterRule) -> str:
    """Return whom an entry of a rule means."""
    match peer:
        case IPBlock(cidr, excepts):
            word = "networks" if isinstance(rule, ClusterRule) else "ipBlock"
            return f"{word} {cidr}{' except ' + ', '.join(map(str, excepts)) if excepts else ''}"
        case NodePeer(nodes):
            return f"nodes {say_selector(nodes)}"
        case PodPeer(pods, _) if pods == NOTHING:
            return NOBODY
        case PodPeer(pods, None):
            return f"podSelector {say_selector(pods)}"
        case PodPeer(pods, namespaces):
            assert namespaces is not None
            if pods != EVERYTHING:
                return f"podSelector {say_selector(pods)}, namespaceSelector {say_selector(namespaces)}"
            word = "namespaces" if isinstance(rule, ClusterRule) else "namespaceSelector"
            return f"{word} {say_selector(namespaces)}"


def say_subject(policy: Policy) -> str:
    """Return which pods a policy selects."""
    if isinstance(policy, NetworkPolicy):
        return f"podSelector {say_selector(policy.pods)}"
    if policy.pods == EVERYTHING:
        return f"namespaces {say_selector(policy.namespaces)}"
    return f"podSelector {say_selector(policy.pods)}, namespaceSelector {say_selector(policy.namespaces)}"


def say_everybody(rule: PolicyRule | ClusterRule) -> str:
    """Return whom a rule without peers means; one of a cluster's policy has some unless they can't be obeyed."""
    return UNREADABLE if isinstance(rule, ClusterRule) else EVERYBODY


def say_ports(ports: tuple[PolicyPort, ...]) -> list[str]:
    """Return the ports of a rule: ``TCP 80-90``, ``UDP dns``; ``any`` where it names none."""
    return [_port(port) for port in ports] or ["any"]


def _port(port: PolicyPort) -> str:
    if port.name:
        return f"{abi.Protocol(port.protocol).name} {port.name}" if port.protocol else port.name
    name = abi.Protocol(port.protocol).name
    if (port.first, port.last) == _ALL_PORTS:
        return name
    return f"{name} {port.first}" if port.first == port.last else f"{name} {port.first}-{port.last}"
