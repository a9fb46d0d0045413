"""What the cluster says, as far as the datapath cares: frozen facts, no Kubernetes field names, no I/O.

``EndpointSlice.endpoints`` is one packed run of fixed records, because the slice is the unit of endpoint work and a
cluster has 250,000 of them (``ebpfnet.model.endpoints``).
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ebpfnet.model.labels import NOTHING, Labels, Selector

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Kind(enum.StrEnum):
    """The kinds that are followed; the value is Kubernetes' own name."""

    NODE = "Node"
    NAMESPACE = "Namespace"
    POD = "Pod"
    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NETWORK_POLICY = "NetworkPolicy"
    CLUSTER_NETWORK_POLICY = "ClusterNetworkPolicy"
    SERVICE_CIDR = "ServiceCIDR"
    PEER = "Peer"
    """A pod of another node, as a policy's peer: apart from ours, so that one that moves can't be lost between two."""
    FILE = "File"
    """A file of manifests: what a problem with it is named by."""
    INTERFACE = "Interface"
    """An interface of this node that can't be served: likewise."""
    WATCH = "Watch"
    """A resource of the API server that is followed: likewise."""


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Which object: ``namespace`` is empty for what belongs to the cluster as a whole."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """An object that was refused, in whole or in part: the field's path in the manifest and what is wrong with it.

    ``field`` is empty where the whole is meant: a file, a folder, a list of the API server.
    """

    ref: Ref
    field: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.ref), self.field, self.reason) if part)


@dataclass(frozen=True, slots=True)
class Node:
    """A node: its own addresses and the blocks its pods get their addresses from. ``leaving``: about to be removed.

    ``labels`` and ``outer``, its addresses outside the cluster, matter to policies only. ``zone`` is empty where nobody
    says (label ``topology.kubernetes.io/zone``).
    """

    ref: Ref
    addresses: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...]
    leaving: bool = False
    zone: str = ""
    labels: Labels = ()
    outer: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and its labels."""

    ref: Ref
    labels: Labels


@dataclass(frozen=True, slots=True)
class PodPort:
    """A named or numbered container port."""

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. ``addresses`` is empty while it has none, and once it is ``finished``; nothing is compiled for it then."""

    ref: Ref
    node: str
    addresses: tuple[IPAddress, ...]
    labels: Labels
    ports: tuple[PodPort, ...]
    host_network: bool
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod of another node, as far as a policy can mean it; ``addresses`` are 16 bytes each (IPv4 mapped).

    None while the pod has none, when it is over, and in the host's network: those addresses are the node's.
    ``ports`` are those that have a name, sorted, each once.
    """

    ref: Ref
    labels: Labels
    addresses: bytes
    ports: tuple[PodPort, ...] = ()


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service; ``name`` may be empty when it is the only one. ``node_port`` 0: none."""

    name: str
    protocol: int
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A service; ``cluster_ips`` is empty for headless and ExternalName. ``created`` is RFC 3339 text or empty.

    ``load_balancer_ips`` are those that are served here (ipMode VIP). ``internal_local``, ``external_local``: the
    traffic policy is Local, of what comes to cluster IPs and of the rest. ``affinity_s``: seconds that a client stays
    with its backend, 0 for none. ``source_ranges``: the clients of load balancer addresses, None for all.
    ``health_check_port`` 0: none. ``consistent``: every node picks the same backend for a connection. ``foreign``:
    another proxy serves it; all that counts here is that its ``cluster_ips`` are somebody's. ``direct``: the
    backend's node answers clients outside itself; False: it would, but nothing is sent there for that; None: neither.
    """

    ref: Ref
    cluster_ips: tuple[IPAddress, ...]
    ports: tuple[ServicePort, ...]
    created: str
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ips: tuple[IPAddress, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    affinity_s: int = 0
    source_ranges: tuple[IPNetwork, ...] | None = None
    health_check_port: int = 0
    consistent: bool = False
    foreign: bool = False
    direct: bool | None = None


@dataclass(frozen=True, slots=True)
class ServiceCIDR:
    """Blocks that cluster IPs come from, at most one of each family; a cluster may have several of these (KEP-1880)."""

    ref: Ref
    cidrs: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class SlicePort:
    """A port of an endpoint slice, matched to a service's port by ``name``."""

    name: str
    protocol: int
    port: int


class Hint(NamedTuple):
    """For whom an endpoint is meant (``discovery.k8s.io/v1 EndpointHints``)."""

    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Endpoints of one service and family; ``endpoints`` is packed (``ebpfnet.model.endpoints``).

    ``nodes`` and ``hints`` stand beside the packed records, one each; () where no endpoint has any. ``weight``: each's.
    """

    ref: Ref
    service: str
    ipv6: bool
    ports: tuple[SlicePort, ...]
    endpoints: bytes
    nodes: tuple[str, ...] = ()
    hints: tuple[Hint, ...] = ()
    weight: int = 1


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods by their labels and their namespace's; ``namespaces`` None: of the policy's own namespace."""

    pods: Selector
    namespaces: Selector | None = None


@dataclass(frozen=True, slots=True)
class IPBlock:
    """Addresses of a block without those of some blocks in it."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """Ports ``first`` to ``last`` of a protocol, or with a ``name`` the ports that the destination pod calls so.

    A cluster's policy names ports of any protocol: ``protocol`` is 0 then.
    """

    protocol: int
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What is allowed: with any of ``peers`` on any of ``ports``; of either, none given means all."""

    peers: tuple[PodPeer | IPBlock, ...] = ()
    ports: tuple[PolicyPort, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A policy for the pods of its namespace that ``pods`` selects.

    ``ingress`` and ``egress`` are the rules of a direction: () allows nothing, None says nothing about it.
    ``audited``: what it would drop is only counted. ``graceful``: connections that it does not allow any more are left
    alone (None: as the agent's flag says). ``refused``: it can't be obeyed; the pods that it selects are isolated.
    ``generation``: which version of its spec this is, 0 where nobody says; it changes nothing.
    """

    ref: Ref
    pods: Selector
    ingress: tuple[PolicyRule, ...] | None = None
    egress: tuple[PolicyRule, ...] | None = None
    audited: bool = False
    graceful: bool | None = None
    refused: bool = False
    generation: int = field(default=0, compare=False)

    @property
    def has_pod_peers(self) -> bool:
        """Whether other pods must be known to obey it: for their addresses, or for what their ports are called."""
        return _means_pods(self.ingress or (), self.egress or ())


class Tier(enum.IntEnum):
    """Before or after NetworkPolicy (KEP-2091)."""

    ADMIN = 0
    BASELINE = 1


class Action(enum.IntEnum):
    """What a rule of a cluster's policy does; ``PASS`` leaves it to the next tier."""

    ACCEPT = 0
    DENY = 1
    PASS = 2


@dataclass(frozen=True, slots=True)
class NodePeer:
    """Nodes by their labels: the addresses of their hosts, and of pods in the hosts' networks."""

    nodes: Selector


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """A rule of a cluster's policy; of ``peers`` and ``ports`` none means all, as in ``PolicyRule``.

    One that must match nothing has one peer, pods that ``NOTHING`` selects. ``places``: theirs, where not [0], [1], …
    """

    name: str
    action: Action
    peers: tuple[PodPeer | IPBlock | NodePeer, ...] = ()
    ports: tuple[PolicyPort, ...] = ()
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterNetworkPolicy:
    """A policy of the cluster's administrator: the first rule that fits decides, by priority, then name.

    Its subjects are the pods that ``pods`` selects in the namespaces that ``namespaces`` selects. Every ``PodPeer``
    says which namespaces it means. ``refused``: it can't be obeyed; its one rule of each direction denies everything.
    """

    ref: Ref
    tier: Tier
    priority: int
    namespaces: Selector
    pods: Selector
    ingress: tuple[ClusterRule, ...] = ()
    egress: tuple[ClusterRule, ...] = ()
    audited: bool = False
    graceful: bool | None = None
    refused: bool = False
    generation: int = field(default=0, compare=False)

    @property
    def has_pod_peers(self) -> bool:
        """Whether other pods must be known to obey it: for their addresses, or for what their ports are called."""
        return _means_pods(self.ingress, self.egress)

    @property
    def has_node_peers(self) -> bool:
        """Whether other nodes must be known to obey it."""
        return any(isinstance(peer, NodePeer) for rule in (*self.ingress, *self.egress) for peer in rule.peers)


def _means_pods(ingress: Sequence[PolicyRule | ClusterRule], egress: Sequence[PolicyRule | ClusterRule]) -> bool:
    peers = (peer for rule in (*ingress, *egress) for peer in rule.peers)
    named = (port.name for rule in egress for port in rule.ports)
    return any(isinstance(peer, PodPeer) and peer.pods != NOTHING for peer in peers) or any(named)


Policy = NetworkPolicy | ClusterNetworkPolicy
Fact = Node | Namespace | Pod | Peer | Service | ServiceCIDR | EndpointSlice | Policy


@dataclass(frozen=True, slots=True)
class Upsert:
    """An object as it now is. ``since`` is when its change was caused (``time.time()`` seconds), 0 if nobody said."""

    fact: Fact
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Delete:
    """An object that is gone."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Refused:
    """An object that can't be used (in whole: the last good version stays; ``partial``: the fact came too)."""

    problem: Problem
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """An object that had problems has none any more."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Synced:
    """The first full list of everything has been delivered; only from now on may anything be deleted.

    Not ``complete``: something that was there before may be among what is refused, so nothing that nobody knows of is
    removed until another ``Synced`` says that all is known.
    """

    complete: bool = True


@dataclass(frozen=True, slots=True)
class PeersKnown:
    """Whether all that is needed of other nodes, their pods or themselves, is delivered; one that always is, is silent.

    Namespaces are not meant: ``Synced`` waits for them. When pods or nodes are needed that were not, and when they are
    not followed any more, False comes before the first of them.
    """

    known: bool


Change = Upsert | Delete | Refused | Accepted | Synced | PeersKnown
