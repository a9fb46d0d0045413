"""Services to table entries; pure.

Services and endpoint slices are compiled apart and meet by id: a slice says what it adds to a service's port, a
service which endpoint sets its frontends lead to. So a changed slice never compiles a service again, nor a service its
slices. Who gets a frontend that two services ask for is decided where all of them are known (``precedes``).
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Mark
from ebpfnet.compile.endpoints import RECORD, set_name
from ebpfnet.compile.names import shown
from ebpfnet.model.facts import IPAddress, Problem, Service, ServicePort
from ebpfnet.model.host import Host

__all__ = ["RECORD", "Asked", "Compiled", "Wanted", "compile_service", "precedence", "precedes"]
NOT_ALLOWED = (
    "is in no --external-ip-cidr: who may write Services could take anybody's traffic (CVE-2020-8554, KEP-5707)"
)
_DIRECT = {None: Mark(0), False: Mark.TAKEN, True: Mark.DIRECT | Mark.TAKEN}
_ANY: dict[int, IPAddress] = {4: ipaddress.IPv4Address(0), 6: ipaddress.IPv6Address(0)}


class Wanted(NamedTuple):
    """An endpoint set that a frontend leads to. ``group``: id of the port's set of all endpoints, where pieces meet."""

    group: int
    local: bool
    label: str
    members: bool  # clients stay with their backends, or other nodes may send to one of them
    consistent: str  # name that a consistent choice is seeded with; empty: at random


class Asked(NamedTuple):
    """One frontend that a service asks for: the value in ``services``, and where the service says so."""

    value: bytes
    field: str


@dataclasses.dataclass(slots=True)
class Compiled:
    """All that one service asks for."""

    frontends: dict[bytes, Asked] = dataclasses.field(default_factory=dict)
    sets: dict[int, Wanted] = dataclasses.field(default_factory=dict)
    ranges: list[bytes] = dataclasses.field(default_factory=list)
    cluster_ips: list[bytes] = dataclasses.field(default_factory=list)
    mark: Mark = Mark.CLUSTER_IP
    """What ``cluster_ips`` are."""
    direct: bool = False  # what other nodes send on for clients outside is taken
    problems: list[Problem] = dataclasses.field(default_factory=list)


class _Port:
    """The endpoint sets of one port and family of a service."""

    def __init__(self, service: Service, port: ServicePort, *, ipv6: bool, out: Compiled) -> None:
        self._service = service
        self._port = port
        self._ipv6 = ipv6
        self._out = out
        self._group = 0

    def set(self, *, local: bool, outside: bool = False) -> int:
        """Return the id of one of the two sets, which is wanted from now on, maybe for clients outside."""
        service, port = self._service, self._port
        where = (service.ref.namespace, service.ref.name, port.name, port.protocol)
        name = set_name(*where, ipv6=self._ipv6, local=local)
        self._group = self._group or abi.identify(set_name(*where, ipv6=self._ipv6))
        identity = abi.identify(name) if local else self._group
        label = f"{service.ref.namespace}/{service.ref.name}:{port.name or port.port}{'#local' if local else ''}"
        seed = name if service.consistent else ""
        before = self._out.sets.get(identity)
        members = bool(service.affinity_s or (outside and service.direct is not None) or (before and before.members))
        self._out.sets[identity] = Wanted(self._group, local, shown(label), members, seed)
        return identity

    def ask(self, address: IPAddress, number: int, value: bytes, field: str) -> None:
        """Ask for a frontend; the first kind that wants an address of the service itself has it."""
        key = abi.Frontend(abi.pack_address(address), number, self._port.protocol).pack()
        self._out.frontends.setdefault(key, Asked(value, field))


def compile_service(service: Service, host: Host) -> Compiled:
    """Return what a service asks for on this node, and what of it can't be served whoever else asks for what.

    Cluster IPs have the endpoints of the internal traffic policy. All other addresses have those of the external one
    for clients outside, and the Cluster policy's for clients in the cluster (pkg/proxy/serviceport.go: "short
    circuiting"). As there, a family without a cluster IP is none of the service's.
    """
    out = Compiled(mark=Mark.FOREIGN if service.foreign else Mark.CLUSTER_IP)
    families: set[int] = {address.version for address in service.cluster_ips}
    lb_ips, external_ips = _usable(service, host, families, out)
    direct = _DIRECT[service.direct]
    for index, port in enumerate(service.ports):
        for version in sorted(families):
            sets = _Port(service, port, ipv6=version == 6, out=out)
            for at, address in enumerate(service.cluster_ips):
                if address.version == version:
                    inside = sets.set(local=service.internal_local)
                    value = abi.Service(inside, inside, 0, service.affinity_s).pack()
                    sets.ask(address, port.port, value, f"spec.clusterIPs[{at}]")
            ranges = _ranges_id(service, version)
            outer = [(each, field, ranges, Mark.BALANCER) for each, field in lb_ips if each.version == version]
            outer += [(each, field, 0, Mark(0)) for each, field in external_ips if each.version == version]
            if outer or port.node_port:
                inside = sets.set(local=False, outside=not service.external_local)
                outside = sets.set(local=True, outside=True) if service.external_local else inside
            for address, field, own, mark in outer:
                value = abi.Service(inside, outside, own, service.affinity_s, mark | direct).pack()
                sets.ask(address, port.port, value, field)
            if port.node_port:
                value = abi.Service(inside, outside, 0, service.affinity_s, direct).pack()
                sets.ask(_ANY[version], port.node_port, value, f"spec.ports[{index}].nodePort")
        if port.node_port and (port.protocol, port.node_port) in host.busy:
            reason = (
                f"{port.node_port}/{abi.Protocol(port.protocol).name} is also a local socket's, which is not reached"
            )
            out.problems.append(Problem(service.ref, f"spec.ports[{index}].nodePort", reason))
    out.direct = any(abi.Service.unpack(each.value).marks & Mark.TAKEN for each in out.frontends.values())
    out.cluster_ips = [abi.pack_address(address) for address in service.cluster_ips]
    out.ranges = [each for version in sorted(families) for each in _ranges(service, version, host, lb_ips)]
    return out


Given = list[tuple[IPAddress, str]]  # addresses, and the fields that name them


def _usable(service: Service, host: Host, families: set[int], out: Compiled) -> tuple[Given, Given]:
    """Return the load balancer addresses and the external IPs that are served; names the others."""
    if not families:
        return [], []
    found: tuple[Given, Given] = ([], [])
    named = ("status.loadBalancer.ingress", service.load_balancer_ips), ("spec.externalIPs", service.external_ips)
    for kind, (field, addresses) in enumerate(named):
        reasons = []
        for address in addresses:
            reason = _why_not(address, host, families, external=kind == 1)
            if reason:
                reasons.append(f"{address} {reason}")
            else:
                found[kind].append((address, field))
        if reasons:
            out.problems.append(Problem(service.ref, field, "; ".join(reasons)))
    return found


def _why_not(address: IPAddress, host: Host, families: set[int], *, external: bool) -> str:
    if address.version not in families:
        return f"is IPv{address.version}, and the service has no such cluster IP"
    if external:  # which may be the node's own: that is what many use them for, and kube-proxy serves it
        allowed = any(address in block for block in host.external_ip_cidrs)
        return "" if allowed else NOT_ALLOWED
    if address in host.addresses:
        return "is an address of this node"
    block = next((block for block in host.pod_cidrs if address in block), None)
    return f"is in the pod range {block}" if block else ""


def _ranges_id(service: Service, version: int) -> int:
    """Return the id of the ranges that a family's load balancer addresses are for; 0: for everybody.

    As kube-proxy: ranges of the other family say nothing (pkg/proxy/serviceport.go, ``MapCIDRsByIPFamily``). Ranges
    none of which is one let nobody in.
    """
    ranges = service.source_ranges
    if ranges is None or (ranges and not any(block.version == version for block in ranges)):
        return 0
    return abi.identify(f"{service.ref.namespace}/{service.ref.name}")


def _ranges(service: Service, version: int, host: Host, lb_ips: Given) -> Iterator[bytes]:
    identity = _ranges_id(service, version)
    blocks = [block for block in service.source_ranges or () if block.version == version]
    addresses = [each for each, _ in lb_ips if each.version == version]
    if not identity or not addresses:
        return
    # A load balancer's address may be on an interface of the node, too: what the node sends there then comes from that
    # very address (pkg/proxy/nftables/proxier.go, ``allowFromNode``).
    if any(own in block for own in host.addresses for block in blocks):
        blocks += [ipaddress.ip_network(address) for address in addresses]
    mapped = 96 if version == 4 else 0
    for block in dict.fromkeys(blocks):
        yield abi.Range(64 + mapped + block.prefixlen, identity, abi.pack_address(block.network_address)).pack()


def precedes(service: Service) -> tuple[str, object]:
    """Return what orders services that ask for one frontend: the oldest has it, then the first by name.

    One without a creationTimestamp counts as younger than any with one. Who had the frontend first does not count: the
    outcome depends on the cluster's state alone.
    """
    return service.created or "9999", service.ref


def precedence(owner: Service, other: Service) -> str:
    """Say by which rule of ``precedes`` the owner comes before the other."""
    if owner.created and other.created:
        return "which is older" if owner.created != other.created else "which is as old and comes first by name"
    if owner.created:
        return "for this one has no creationTimestamp"
    return "which comes first by name: neither has a creationTimestamp"
