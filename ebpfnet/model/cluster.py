"""The facts as they now are, with the indexes that tell which units an event touches. No I/O, no tables.

Endpoint slices are not kept: compiled, they are a few bytes each, and the reconciler holds those.
"""

from __future__ import annotations

from ebpfnet.model.demand import NONE, Demand
from ebpfnet.model.facts import (
    ClusterNetworkPolicy,
    IPAddress,
    IPNetwork,
    Kind,
    Namespace,
    NetworkPolicy,
    Node,
    Peer,
    Pod,
    Policy,
    Ref,
    Service,
    ServiceCIDR,
)
from ebpfnet.model.peers import Peers, as_peer


class Cluster:
    """Services and where their addresses come from, the pods of one node, nodes, namespaces, and policies.

    And of all pods what policies see of a peer.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.services: dict[Ref, Service] = {}
        self.pods: dict[Ref, Pod] = {}
        self.nodes: dict[Ref, Node] = {}
        self.namespaces: dict[Ref, Namespace] = {}
        self.policies: dict[Ref, NetworkPolicy] = {}
        self.cluster_policies: dict[Ref, ClusterNetworkPolicy] = {}
        self.peers = Peers()
        self.peers_known = True
        """Whether ``peers`` and ``nodes`` are all there are of what is ``needed``. While they are not, nothing follows
        from one that is missing: what policies mean by them stays as it was.
        """
        self.claims: dict[IPAddress, tuple[Ref, ...]] = {}
        """Which services have a cluster IP; nearly always one."""
        self._service_cidrs: dict[Ref, ServiceCIDR] = {}
        self._demand = Demand()
        self._direct: set[Ref] = set()  # services that other nodes send clients on for, from addresses of theirs

    @property
    def service_cidrs(self) -> tuple[IPNetwork, ...]:
        """The blocks that cluster IPs come from, as the cluster's objects say: each once, in order; () if none does."""
        blocks = {block for each in self._service_cidrs.values() for block in each.cidrs}
        return tuple(sorted(blocks, key=lambda block: (block.version, block.network_address, block.prefixlen)))

    @property
    def zone(self) -> str:
        """The zone of this node; empty where nobody says."""
        node = self.nodes.get(Ref(Kind.NODE, "", self.node))
        return node.zone if node else ""

    def set_service(self, service: Service) -> None:
        """Take a service in."""
        self.drop_service(service.ref)
        self.services[service.ref] = service
        if service.direct is not None:
            self._direct.add(service.ref)
        for address in service.cluster_ips:
            self.claims[address] = *self.claims.get(address, ()), service.ref

    def drop_service(self, ref: Ref) -> None:
        """Take a service out; one that is not there is no error."""
        service = self.services.pop(ref, None)
        self._direct.discard(ref)
        for address in service.cluster_ips if service else ():
            left = tuple([each for each in self.claims.pop(address) if each != ref])
            if left:
                self.claims[address] = left

    def set_pod(self, pod: Pod) -> bool:
        """Take a pod in; returns whether this node is touched."""
        here = pod.node == self.node or self.pods.pop(pod.ref, None) is not None
        if pod.node == self.node:
            self.pods[pod.ref] = pod
            self._demand.set(pod)
        else:
            self._demand.drop(pod.ref)
        self.peers.set(as_peer(pod))
        return here

    def drop_pod(self, ref: Ref) -> bool:
        """Take a pod out; returns whether this node is touched."""
        self.peers.drop(ref)
        self._demand.drop(ref)
        return self.pods.pop(ref, None) is not None

    def note(self, fact: Node | Namespace | Peer | Policy | ServiceCIDR) -> None:
        """Take in what no table of this node follows from by itself."""
        match fact:
            case Peer():
                self.peers.set(fact)
            case NetworkPolicy():
                self.policies[fact.ref] = fact
                self._demand.set(fact)
            case ClusterNetworkPolicy():
                self.cluster_policies[fact.ref] = fact
                self._demand.set(fact)
            case Node():
                self.nodes[fact.ref] = fact
            case Namespace():
                self.namespaces[fact.ref] = fact
                self._demand.set(fact)
            case ServiceCIDR():
                self._service_cidrs[fact.ref] = fact

    def forget(self, ref: Ref) -> None:
        """Take out what ``note`` took in; what is not there is no error."""
        match ref.kind:
            case Kind.PEER:
                self.peers.drop(ref)
            case Kind.NETWORK_POLICY:
                self.policies.pop(ref, None)
                self._demand.drop(ref)
            case Kind.CLUSTER_NETWORK_POLICY:
                self.cluster_policies.pop(ref, None)
                self._demand.drop(ref)
            case Kind.NODE:
                self.nodes.pop(ref, None)
            case Kind.NAMESPACE:
                self.namespaces.pop(ref, None)
                self._demand.drop(ref)
            case Kind.SERVICE_CIDR:
                self._service_cidrs.pop(ref, None)

    @property
    def needed(self) -> frozenset[Kind]:
        """What is needed of other nodes: their pods (``PEER``), they themselves (``NODE``).

        Policies that select pods of this node may mean both; a service whose backends answer directly means the nodes
        that send its clients on.
        """
        return self._demand.kinds | (frozenset((Kind.NODE,)) if self._direct else NONE)
