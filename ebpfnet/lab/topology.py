"""What a lab consists of: a pure function of the nodes and pods in the manifests.

Names, MAC addresses and routes are functions of the lab's and the object's names alone, so the same manifests always
give the same lab, and two plans can be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ebpfnet.exits import BadInput
from ebpfnet.model.facts import IPAddress, IPNetwork, Node, Pod, Problem, Ref, Service

UPLINK = "uplink"
"""Name of a node's interface to the other nodes, and of the outside's."""

OUTSIDE_BLOCKS: dict[int, tuple[IPNetwork, ...]] = {
    4: tuple(map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"))),
    6: (ipaddress.ip_network("2001:db8::/64"),),
}
"""For documentation (RFC 5737, RFC 3849): no cluster has them, and where one does another address is taken."""

OUTSIDE_ADDRESSES = 2
"""Of each family, so that one client can be in a range of addresses and another one not."""


class TopologyError(BadInput):
    """The manifests describe no cluster that can be wired; the text names the object and the field."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node: its network namespace and its end of the uplink network."""

    name: str
    netns: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    mac: str
    bridge_port: str


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod: its network namespace and its wire. With the host's network it has neither, ``netns`` is the node's."""

    namespace: str
    name: str
    node: str
    netns: str
    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]
    host_network: bool
    host_interface: str
    host_mac: str
    mac: str

    @property
    def full_name(self) -> str:
        """NAMESPACE/NAME."""
        return f"{self.namespace}/{self.name}"

    @property
    def alias(self) -> str:
        """What the host side's ifalias says, by which the node's agent knows whose wire it is."""
        return f"ebpfnet pod={self.full_name} mac={self.mac}"


@dataclass(frozen=True, slots=True)
class OutsidePlan:
    """The world outside of the cluster: a client on the uplink network, and the router of every node."""

    netns: str
    addresses: tuple[str, ...]
    mac: str
    bridge_port: str


@dataclass(frozen=True, slots=True)
class Route:
    """On a node or outside: what to reach through which node's address."""

    destination: str
    via: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole lab. ``served`` are the addresses that services have for clients outside."""

    lab: str
    uplink_netns: str
    nodes: tuple[NodePlan, ...] = ()
    pods: tuple[PodPlan, ...] = ()
    outside: OutsidePlan | None = None
    served: tuple[str, ...] = ()

    def node(self, name: str) -> NodePlan | None:
        """Return the node of that name."""
        return next((node for node in self.nodes if node.name == name), None)

    def pod(self, full_name: str) -> PodPlan | None:
        """Return the pod NAMESPACE/NAME; a bare name is looked for in ``default``."""
        wanted = full_name if "/" in full_name else f"default/{full_name}"
        return next((pod for pod in self.pods if pod.full_name == wanted), None)

    def pods_of(self, node: str) -> tuple[PodPlan, ...]:
        """Return the pods of a node."""
        return tuple(pod for pod in self.pods if pod.node == node)


def empty(lab: str) -> Plan:
    """Return the plan of a lab with no node: what there is before anything is built."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", lab):
        raise TopologyError(f"lab name {lab!r}: at most 40 letters a-z, digits and dashes, no dash at either end")
    return Plan(lab, _netns(lab, "uplink"))


class Planned(NamedTuple):
    """A plan, and the pods that are not in it though they should be, each with the reason."""

    plan: Plan
    left_out: tuple[Problem, ...]


def plan(
    lab: str,
    nodes: Iterable[Node],
    pods: Iterable[Pod],
    kept: Iterable[PodPlan] = (),
    services: Iterable[Service] = (),
) -> Planned:
    """Return the plan for nodes and pods; raises ``TopologyError`` when the nodes make no cluster.

    A pod that can't be wired is left out and named, and one that has finished is left out. ``kept`` are pods of an
    earlier plan whose objects can't be read now: they stay, where nothing has taken their place.
    """
    bare = empty(lab)
    node_plans = tuple(_node_plan(lab, node) for node in sorted(nodes, key=lambda node: node.ref))
    if not node_plans:
        raise TopologyError("the manifests contain no Node")
    owners = _owners_of(node_plans)
    wired: list[PodPlan] = []
    left_out: list[Problem] = []
    for pod in sorted((pod for pod in pods if not pod.finished), key=lambda pod: pod.ref):
        problem = _obstacle(pod, node_plans, owners)
        if problem is None:
            wired.append(_pod_plan(lab, pod, next(node for node in node_plans if node.name == pod.node)))
            if not pod.host_network:
                owners |= dict.fromkeys(map(str, pod.addresses), str(pod.ref))
        else:
            left_out.append(problem)
    at_home = {node.name for node in node_plans}
    wired += [
        pod for pod in kept if pod.node in at_home and (pod.host_network or owners.keys().isdisjoint(pod.addresses))
    ]
    wired.sort(key=lambda pod: (pod.namespace, pod.name))
    whole = Plan(lab, bare.uplink_netns, node_plans, tuple(wired))
    return Planned(_with_outside(whole, services), tuple(left_out))


def routes(whole: Plan, node: NodePlan) -> tuple[Route, ...]:
    """Return a node's routes to the pods of all other nodes.

    Pods outside of their node's podCIDRs (an address manager that does not use them) get a route each.
    """
    result: list[Route] = []
    for other in whole.nodes:
        if other.name == node.name:
            continue
        blocks = [ipaddress.ip_network(block) for block in other.pod_cidrs]
        singles = [
            ipaddress.ip_network(address)
            for pod in whole.pods_of(other.name)
            if not pod.host_network
            for address in pod.addresses
            if not _inside(ipaddress.ip_address(address), blocks)
        ]
        for block in (*blocks, *singles):
            via = _first(other.addresses, block.version)
            if via is not None:
                result.append(Route(str(block), via))
    return tuple(result)


def outside_routes(whole: Plan) -> tuple[Route, ...]:
    """Return the routes of the outside to what services have for it: through the first node of the family.

    There is none to pods, as there is none to a cluster's from the world: who answers them has to hide them.
    """
    found = []
    for address in whole.served:
        block = ipaddress.ip_network(address)
        addresses = [each for node in whole.nodes for each in node.addresses]
        via = _first(addresses, block.version)
        if via is not None:
            found.append(Route(str(block), via))
    return tuple(found)


def _with_outside(whole: Plan, services: Iterable[Service]) -> Plan:
    """Return the plan with its outside, whose addresses are nobody's in the cluster, and those that it can call."""
    taken = [text for node in whole.nodes for text in (*node.addresses, *node.pod_cidrs)]
    taken += [text for pod in whole.pods for text in pod.addresses]
    blocks = [ipaddress.ip_network(text) for text in taken]
    asked = {address for service in services for address in (*service.external_ips, *service.load_balancer_ips)}
    served = sorted((each for each in asked if not _inside(each, blocks)), key=lambda each: (each.version, int(each)))
    blocks += map(ipaddress.ip_network, served)
    versions = {ipaddress.ip_address(text).version for node in whole.nodes for text in node.addresses}
    addresses: list[str] = []
    for version in sorted(versions):
        candidates = (each for block in OUTSIDE_BLOCKS[version] for each in block.hosts())
        free = (str(each) for each in candidates if not _inside(each, blocks))
        addresses += itertools.islice(free, OUTSIDE_ADDRESSES)
    name = f"{whole.lab} outside"
    outside = OutsidePlan(_netns(whole.lab, "outside"), tuple(addresses), _mac(name), "ebn" + _digest("outside", 5))
    return dataclasses.replace(whole, outside=outside, served=tuple(map(str, served)))


def _node_plan(lab: str, node: Node) -> NodePlan:
    name = node.ref.name
    if bad := _bad_name(node.ref):
        raise TopologyError(str(bad))
    if not node.addresses:
        raise TopologyError(f"{node.ref}: status.addresses: no InternalIP; the lab assigns none")
    return NodePlan(
        name,
        _netns(lab, f"node {name}"),
        tuple(map(str, node.addresses)),
        tuple(map(str, node.pod_cidrs)),
        _mac(f"{lab} node {name}"),
        "ebn" + _digest(f"node {name}", 5),
    )


def _obstacle(pod: Pod, nodes: Sequence[NodePlan], owners: Mapping[str, str]) -> Problem | None:
    """Return why a pod can't be wired, or None."""
    if bad := _bad_name(pod.ref):
        return bad
    node = next((node for node in nodes if node.name == pod.node), None)
    if node is None:
        reason = (
            f"no Node {pod.node} in the manifests"
            if pod.node
            else "missing: on no node (yet); the lab has no scheduler"
        )
        return Problem(pod.ref, "spec.nodeName", reason)
    if pod.host_network:
        return None
    if not pod.addresses:
        return Problem(pod.ref, "status.podIPs", "the pod has no address (yet): it gets no wire; the lab assigns none")
    for address in pod.addresses:
        if owner := owners.get(str(address)):
            return Problem(pod.ref, "status.podIPs", f"{address} is also an address of {owner}")
        if len(nodes) > 1 and _first(node.addresses, address.version) is None:
            reason = f"no other node can reach {address}: Node {node.name} has no IPv{address.version} InternalIP"
            return Problem(pod.ref, "status.podIPs", reason)
    return None


def _pod_plan(lab: str, pod: Pod, node: NodePlan) -> PodPlan:
    full_name = f"{pod.ref.namespace}/{pod.ref.name}"
    return PodPlan(
        pod.ref.namespace,
        pod.ref.name,
        pod.node,
        node.netns if pod.host_network else _netns(lab, f"pod {full_name}"),
        tuple(map(str, pod.addresses)),
        tuple(sorted({(port.protocol, port.port) for port in pod.ports})),
        pod.host_network,
        "" if pod.host_network else "ebn" + _digest(f"pod {full_name}", 5),
        _mac(f"{lab} wire {full_name}"),
        _mac(f"{lab} pod {full_name}"),
    )


def _bad_name(ref: Ref) -> Problem | None:
    """Return what is wrong with a name that Kubernetes would refuse: it becomes a file's here."""
    for field, text in (("metadata.name", ref.name), ("metadata.namespace", ref.namespace)):
        if text and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text):
            return Problem(ref, field, f"not a DNS name: {text!r}")
    return None


def _owners_of(nodes: Iterable[NodePlan]) -> dict[str, str]:
    """Return whose each address of the nodes is; refuse two owners of one."""
    owners: dict[str, str] = {}
    for node in nodes:
        for address in node.addresses:
            if address in owners:
                text = f"{address} is also an address of {owners[address]}"
                raise TopologyError(f"Node {node.name}: status.addresses: {text}")
            owners[address] = f"Node {node.name}"
    return owners


def _inside(address: IPAddress, blocks: Sequence[IPNetwork]) -> bool:
    return any(address in block for block in blocks)


def _first(addresses: Iterable[str], version: int) -> str | None:
    return next((address for address in addresses if ipaddress.ip_address(address).version == version), None)


def _netns(lab: str, what: str) -> str:
    return f"ebn-{lab}-{_digest(what, 4)}"


def _mac(text: str) -> str:
    """Return a locally administered unicast address."""
    return "02:" + ":".join(f"{byte:02x}" for byte in hashlib.blake2b(text.encode(), digest_size=5).digest())


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
