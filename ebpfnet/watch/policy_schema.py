"""The fields of policies, typed for msgspec (``networking.k8s.io/v1``, ``policy.networking.k8s.io/v1alpha2``).

Here a field that is not known is an error wherever it may narrow what a policy allows: what it says can't be obeyed by
leaving it out. Of a selector, a rule or a port that a newer API gave another field, less would be asked than was meant.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ebpfnet.watch.schema import AnnotatedMeta, Number, Struct, Text


class Strict(Struct, forbid_unknown_fields=True):
    """No field but these."""


class PolicyMeta(AnnotatedMeta):
    """``ObjectMeta``; the API server counts the versions of the spec. What is no number there says nothing."""

    generation: Any = None

    @property
    def version(self) -> int:
        """The generation, 0 where nobody says."""
        return version(self.generation)


def version(generation: object) -> int:
    """Return ``metadata.generation`` where it is one, else 0."""
    return generation if type(generation) is int else 0


class LabelRequirement(Strict):
    """``LabelSelectorRequirement``."""

    key: str
    operator: str
    values: list[str] | None = None


class LabelSelector(Strict):
    """``LabelSelector``; where it may be absent, that is not the same as empty."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelRequirement] | None = None


class IPBlockObject(Strict):
    """``IPBlock``."""

    cidr: str
    excepts: list[str] | None = msgspec.field(default=None, name="except")


class NetworkPolicyPeer(Strict):
    """``NetworkPolicyPeer``."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlockObject | None = None


class NetworkPolicyPort(Strict):
    """``NetworkPolicyPort``."""

    protocol: Text = None
    port: int | str | None = None
    end_port: Number = None


class NetworkPolicyIngressRule(Strict):
    """``NetworkPolicyIngressRule``."""

    peers: list[NetworkPolicyPeer] | None = msgspec.field(default=None, name="from")
    ports: list[NetworkPolicyPort] | None = None


class NetworkPolicyEgressRule(Strict):
    """``NetworkPolicyEgressRule``."""

    peers: list[NetworkPolicyPeer] | None = msgspec.field(default=None, name="to")
    ports: list[NetworkPolicyPort] | None = None


class NetworkPolicySpec(Strict):
    """``NetworkPolicySpec``."""

    pod_selector: LabelSelector | None = None
    policy_types: list[str] | None = None
    ingress: list[NetworkPolicyIngressRule] | None = None
    egress: list[NetworkPolicyEgressRule] | None = None


class NetworkPolicyObject(Struct):
    """``networking.k8s.io/v1 NetworkPolicy``."""

    metadata: PolicyMeta
    spec: NetworkPolicySpec | None = None


class NamespacedPod(Strict):
    """``NamespacedPod``."""

    pod_selector: LabelSelector
    namespace_selector: LabelSelector | None = None


class ClusterSubject(Strict):
    """``ClusterNetworkPolicySubject``: exactly one of them."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None


class ClusterPeer(Strict):
    """``ClusterNetworkPolicyIngressPeer``, and of the egress peer what that has beside it: exactly one of them."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPod | None = None
    nodes: LabelSelector | None = None
    networks: list[str] | None = None


class PortRange(Strict):
    """``PortRange``."""

    start: int
    end: int


class Port(Strict):
    """``Port``: exactly one of them."""

    number: Number = None
    range: PortRange | None = None


class ProtocolPorts(Strict):
    """``ClusterNetworkPolicyProtocolTCP``, ``…UDP`` and ``…SCTP``."""

    destination_port: Port | None = None


class ClusterProtocol(Strict):
    """``ClusterNetworkPolicyProtocol``: exactly one of them."""

    tcp: ProtocolPorts | None = None
    udp: ProtocolPorts | None = None
    sctp: ProtocolPorts | None = None
    destination_named_port: Text = None


class ClusterIngressRule(Strict):
    """``ClusterNetworkPolicyIngressRule``. Peers are read one by one: what an unknown one means is the API's to say."""

    action: str
    peers: list[dict[str, Any]] = msgspec.field(name="from")
    name: Text = None
    protocols: list[ClusterProtocol] | None = None


class ClusterEgressRule(Strict):
    """``ClusterNetworkPolicyEgressRule``."""

    action: str
    peers: list[dict[str, Any]] = msgspec.field(name="to")
    name: Text = None
    protocols: list[ClusterProtocol] | None = None


class ClusterNetworkPolicySpec(Strict):
    """``ClusterNetworkPolicySpec``."""

    tier: str
    priority: int
    subject: ClusterSubject
    ingress: list[ClusterIngressRule] | None = None
    egress: list[ClusterEgressRule] | None = None


class ClusterNetworkPolicyObject(Struct):
    """``policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy``."""

    metadata: PolicyMeta
    spec: ClusterNetworkPolicySpec
