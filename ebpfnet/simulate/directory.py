"""Who has which address, and what the ends of a flow mean. Pure: facts in, names and addresses out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.model.facts import Fact, IPAddress, IPNetwork, Node, Pod, PodPort, Ref, Service, ServicePort
from ebpfnet.simulate import packets
from ebpfnet.simulate.flows import BadFlow, Flow

OUTSIDE = "outside"
OUTSIDE_ADDRESSES: tuple[IPAddress, ...] = (ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv6Address("2001:db8::1"))
"""Of who is called ``outside`` (RFC 5737, RFC 3849)."""


class Place(NamedTuple):
    """Where a packet starts or ends: in a pod of a node, in a process of a node, or outside beyond a node's uplink."""

    kind: str  # "pod", "host", "outside"
    node: str
    pod: str = ""  # NAMESPACE/NAME


class Journey(NamedTuple):
    """A flow whose names are resolved; ``key`` is the tuple of its first packet."""

    flow: Flow
    client: Place
    key: bytes


def label(pod: Pod) -> str:
    """Return the pod's name as a flow has it."""
    return f"{pod.ref.namespace}/{pod.ref.name}"


class Directory:
    """The cluster's addresses and names; kept up to date fact by fact."""

    def __init__(self, inside: Iterable[IPNetwork] = ()) -> None:
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self._inside = tuple(inside)
        self._services: dict[str, Service] = {}
        self._pods_at: dict[bytes, dict[Ref, Pod]] = {}
        self._hosts_at: dict[bytes, dict[Ref, str]] = {}
        self._services_at: dict[bytes, dict[Ref, Service]] = {}
        self._owners: dict[bytes, str | None] = {}

    # What comes in

    def put(self, fact: Fact) -> None:
        """Take a fact in, in place of its last version."""
        self.drop(fact.ref)
        name = f"{fact.ref.namespace}/{fact.ref.name}"
        match fact:
            case Node():
                self.nodes[fact.ref.name] = fact
                for address in fact.addresses:
                    self._hosts_at.setdefault(abi.pack_address(address), {})[fact.ref] = fact.ref.name
            case Pod():
                self.pods[name] = fact
                for address in fact.addresses:
                    raw = abi.pack_address(address)
                    if fact.host_network:
                        self._hosts_at.setdefault(raw, {})[fact.ref] = fact.node
                    else:
                        self._pods_at.setdefault(raw, {})[fact.ref] = fact
            case Service():
                self._services[name] = fact
                for address in _addresses_of(fact):
                    self._services_at.setdefault(abi.pack_address(address), {})[fact.ref] = fact

    def drop(self, ref: Ref) -> None:
        """Take an object out; one that is not there is no error."""
        self._owners.clear()
        name = f"{ref.namespace}/{ref.name}"
        addresses: tuple[IPAddress, ...] = ()
        match ref.kind:
            case "Node" if node := self.nodes.pop(ref.name, None):
                addresses = node.addresses
            case "Pod" if pod := self.pods.pop(name, None):
                addresses = pod.addresses
            case "Service" if service := self._services.pop(name, None):
                addresses = _addresses_of(service)
        for address in addresses:
            raw = abi.pack_address(address)
            for index in (self._pods_at, self._hosts_at, self._services_at):
                holders = index.get(raw, {})
                if holders.pop(ref, None) is not None and not holders:
                    del index[raw]

    # What it knows

    def node_names(self) -> list[str]:
        """Return every node: those with an object, and those that only a pod names."""
        return sorted({*self.nodes, *(pod.node for pod in self.pods.values() if pod.node)})

    def pod_at(self, raw: bytes) -> Pod | None:
        """Return the pod with this address (the first by name, as the tables have it), or None."""
        holders = self._pods_at.get(raw)
        return holders[min(holders)] if holders else None

    def host_at(self, raw: bytes) -> str | None:
        """Return the node with this address of its own, or None."""
        holders = self._hosts_at.get(raw)
        return holders[min(holders)] if holders else None

    def owner_of(self, raw: bytes) -> str | None:
        """Return the node that the network routes an address to, or None."""
        if raw not in self._owners:
            self._owners[raw] = self._find_owner(raw)
        return self._owners[raw]

    def _find_owner(self, raw: bytes) -> str | None:
        pod = self.pod_at(raw)
        found = self.host_at(raw) or (pod.node if pod else None)
        if found:
            return found
        address = abi.unpack_address(raw)
        holders = [
            (cidr.prefixlen, name) for name, node in self.nodes.items() for cidr in node.pod_cidrs if address in cidr
        ]
        return max(holders)[1] if holders else None

    def is_inside(self, raw: bytes) -> bool:
        """Tell whether an address is the cluster's, so that nobody outside answers for it."""
        if raw in self._services_at or self.owner_of(raw):
            return True
        address = abi.unpack_address(raw)
        return any(address in network for network in self._inside)

    def has_frontend(self, key: bytes) -> bool:
        """Tell whether an address of services serves the destination port; True for any other address."""
        services = self._services_at.get(key[16:32])
        ends = {(port.port, port.protocol) for each in (services or {}).values() for port in each.ports}
        return not services or (int.from_bytes(key[34:36], "big"), key[36]) in ends

    def addresses_of(self, node: str) -> tuple[IPAddress, ...]:
        """Return a node's own addresses, as its object has them."""
        return self.nodes[node].addresses if node in self.nodes else ()

    # What a flow means

    def resolve(self, flow: Flow, source_port: int) -> Journey:
        """Return the first packet of a flow and where it starts; raises ``BadFlow``."""
        sources = self._sources(flow.source)
        destinations = self._destinations(flow)
        for destination in destinations:
            for source in sources:
                if source.version == destination.version:
                    return self._journey(flow, source, destination, source_port)
        raise BadFlow(f"from, to: {flow.source} and {flow.destination} have no address family in common")

    def _journey(self, flow: Flow, source: IPAddress, destination: IPAddress, source_port: int) -> Journey:
        protocol = flow.number(ipv6=source.version == 6)
        port = source_port if flow.protocol == "ICMP" else self._port(flow, destination, protocol)
        raw_source, raw = abi.pack_address(source), abi.pack_address(destination)
        key = packets.tuple_key(raw_source, raw, source_port, port, protocol)
        return Journey(flow, self._client(flow, raw_source, raw), key)

    def _client(self, flow: Flow, source: bytes, destination: bytes) -> Place:
        if flow.node is not None and flow.node not in self.nodes and flow.node not in self.node_names():
            raise BadFlow(f"node: there is no node {flow.node}")
        if flow.source == OUTSIDE:
            return self._outside(flow, destination)
        process = _node_of(flow.source)
        if process is not None:
            if flow.node not in {None, process}:
                raise BadFlow(f"node: a process of {process} is on no other node")
            return Place("host", process)
        pod = self.pod_at(source)
        if pod is not None:
            if not pod.node:
                raise BadFlow(f"from: pod {label(pod)} is on no node")
            return Place("pod", pod.node, label(pod))
        host = self.host_at(source)
        if host is not None and flow.node in {None, host}:
            return Place("host", host)
        return self._outside(flow, destination)

    def _outside(self, flow: Flow, destination: bytes) -> Place:
        node = flow.node or self.owner_of(destination) or next(iter(self.node_names()), None)
        if node is None:
            raise BadFlow("from: there is no node to come in through")
        return Place("outside", node)

    def _sources(self, text: str) -> tuple[IPAddress, ...]:
        if text == OUTSIDE:
            return OUTSIDE_ADDRESSES
        if node := _node_of(text):
            return self._of_node(node, "from")
        if "/" not in text:
            return (_address(text, "from"),)
        pod = self.pods.get(text)
        if pod is None:
            raise BadFlow(f"from: there is no pod {text}")
        return self._addresses(pod, "from")

    def _of_node(self, name: str, field: str) -> tuple[IPAddress, ...]:
        if name not in self.nodes:
            raise BadFlow(f"{field}: there is no node {name}")
        if not self.nodes[name].addresses:
            raise BadFlow(f"{field}: node {name} has no address")
        return self.nodes[name].addresses

    def _addresses(self, pod: Pod, field: str) -> tuple[IPAddress, ...]:
        node = self.nodes.get(pod.node)
        addresses = pod.addresses or (node.addresses if pod.host_network and node else ())
        if not addresses:
            raise BadFlow(f"{field}: pod {label(pod)} has no address")
        return addresses

    def _destinations(self, flow: Flow) -> tuple[IPAddress, ...]:
        """A service when it has the port, or when there is no pod of that name."""
        text = flow.destination
        if node := _node_of(text):
            return self._of_node(node, "to")
        if "/" not in text:
            return (_address(text, "to"),)
        service, pod = self._services.get(text), self.pods.get(text)
        if service is not None and (pod is None or (service.cluster_ips and _serves(service, flow))):
            if not service.cluster_ips:
                raise BadFlow(f"to: service {text} has no cluster IP")
            return service.cluster_ips
        if pod is None:
            raise BadFlow(f"to: there is no service and no pod {text}")
        return self._addresses(pod, "to")

    def _port(self, flow: Flow, destination: IPAddress, protocol: int) -> int:
        if isinstance(flow.port, int):
            return flow.port
        raw = abi.pack_address(destination)
        holders = self._services_at.get(raw)
        pod = self.pod_at(raw) or self.pods.get(flow.destination)
        ports: tuple[ServicePort, ...] | tuple[PodPort, ...] = ()
        if holders:
            ports = min(holders.values(), key=lambda service: (service.created or "9999", service.ref)).ports
        elif pod is not None:
            ports = pod.ports
        for port in ports:
            if port.name == flow.port and port.protocol == protocol:
                return port.port
        raise BadFlow(f"port: {flow.destination} has no {flow.protocol} port named {flow.port!r}")


def is_routable(raw: bytes) -> bool:
    """Tell whether a router passes packets to an address on: no host's own, no link's, no group's, nobody's."""
    address = abi.unpack_address(raw)
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    # 0.0.0.0/8 is "this network" (RFC 791), 240.0.0.0/4 reserved (RFC 1112), 255.255.255.255 in it everybody here.
    return address.version == 6 or not (address.packed[0] == 0 or address.is_reserved)


def _addresses_of(service: Service) -> tuple[IPAddress, ...]:
    """Return every address that a service asks for."""
    return (*service.cluster_ips, *service.load_balancer_ips, *service.external_ips)


def _node_of(text: str) -> str | None:
    """Return NAME of ``node NAME``."""
    head, _, name = text.partition(" ")
    return name.strip() if head == "node" and name.strip() else None


def _serves(service: Service, flow: Flow) -> bool:
    protocol = flow.number(ipv6=False)
    return any(flow.port in {port.port, port.name} and port.protocol == protocol for port in service.ports)


def _address(text: str, field: str) -> IPAddress:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadFlow(f"{field}: {text!r} is neither NAMESPACE/NAME nor an IP address") from None
    if address.version == 6 and (address.ipv4_mapped or address.scope_id):
        raise BadFlow(f"{field}: {text!r} is an IPv4-mapped or scoped address")
    return address
