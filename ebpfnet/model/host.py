"""What this node itself is to services: its addresses, and what its flags allow."""

from __future__ import annotations

from dataclasses import dataclass

from ebpfnet.model.facts import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True)
class Host:
    """This node, as far as services go.

    ``addresses``: all of its own; ``nodeport_addresses``: those of them that serve NodePorts. ``sources``: at most one
    of each family, what stands for a client whose answers must come back here, with a port of ``source_ports`` (first,
    last). ``pod_cidrs``: whose clients are in the cluster. ``service_cidrs``: where cluster IPs come from.
    ``external_ip_cidrs``: the only external IPs that are served. ``busy``: (protocol, port) of local sockets that could
    be reached at a NodePort's address.
    """

    addresses: tuple[IPAddress, ...] = ()
    nodeport_addresses: tuple[IPAddress, ...] = ()
    sources: tuple[IPAddress, ...] = ()
    source_ports: tuple[int, int] = (1024, 29999)
    pod_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    external_ip_cidrs: tuple[IPNetwork, ...] = ()
    busy: frozenset[tuple[int, int]] = frozenset()
