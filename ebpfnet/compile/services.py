"""Services and endpoint slices to table entries; pure.

The two are compiled apart and meet by id: a slice says which endpoint sets it feeds, a service which sets its
frontends lead to. So a changed slice never compiles a service again, nor a service its slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.names import shown
from ebpfnet.model import endpoints
from ebpfnet.model.facts import EndpointSlice, IPAddress, Problem, Service

RECORD = abi.Backend.size()
READY = int(endpoints.Condition.READY)  # a plain number: an IntFlag's "&" costs as much as all else of an endpoint


class Entry(NamedTuple):
    """One frontend: the key in ``services``, the endpoint set it leads to, and the set's name for people."""

    frontend: bytes
    set_id: int
    label: str


def set_name(namespace: str, service: str, port: str, protocol: int, *, ipv6: bool) -> str:
    """Return the name that an endpoint set's id is made of; ``port`` is the port's name, which may be empty."""
    return f"{namespace}/{service}:{port}/{protocol}{'#6' if ipv6 else ''}"


def compile_service(service: Service, mine: Mapping[IPAddress, Service]) -> tuple[list[Entry], list[Problem]]:
    """Return a service's frontends and what of it can't be served.

    ``mine`` says which service each cluster IP belongs to (``claim``): an address that another service holds is left
    out, and named.
    """
    entries, problems = [], []
    for index, address in enumerate(service.cluster_ips):
        owner = mine.get(address, service)
        if owner.ref != service.ref:
            field = f"spec.clusterIPs[{index}]"
            reason = f"{address} belongs to {owner.ref}, {_precedence(owner, service)}"
            problems.append(Problem(service.ref, field, reason))
            continue
        for port in service.ports:
            if port.protocol == abi.Protocol.SCTP:
                continue
            ipv6 = address.version == 6
            name = set_name(service.ref.namespace, service.ref.name, port.name, port.protocol, ipv6=ipv6)
            frontend = abi.Frontend(abi.pack_address(address), port.port, port.protocol).pack()
            label = shown(f"{service.ref.namespace}/{service.ref.name}:{port.name or port.port}")
            entries.append(Entry(frontend, abi.identify(name), label))
    for index, port in enumerate(service.ports):
        if port.protocol == abi.Protocol.SCTP and service.cluster_ips:
            field = f"spec.ports[{index}].protocol"
            problems.append(Problem(service.ref, field, "SCTP service ports are not supported yet"))
    return entries, problems


def claim(services: Iterable[Service]) -> Service:
    """Return which of several services with one cluster IP has it: the oldest, then the first by name.

    One without a creationTimestamp counts as younger than any with one. Who had the address first does not count: the
    outcome depends on the cluster's state alone.
    """
    return min(services, key=lambda service: (service.created or "9999", service.ref))


def _precedence(owner: Service, other: Service) -> str:
    """Say by which rule of ``claim`` the owner comes before the other."""
    if owner.created and other.created:
        return "which is older" if owner.created != other.created else "which is as old and comes first by name"
    if owner.created:
        return "for this one has no creationTimestamp"
    return "which comes first by name: neither has a creationTimestamp"


def compile_slice(piece: EndpointSlice) -> dict[int, bytes]:
    """Return what a slice adds to endpoint sets: set id to a packed run of ready backends, each once."""
    run = piece.endpoints
    step = endpoints.RECORD
    ready = [run[at : at + 16] for at in range(0, len(run), step) if run[at + 16] & READY]
    out = {}
    for port in piece.ports:
        name = set_name(piece.ref.namespace, piece.service, port.name, port.protocol, ipv6=piece.ipv6)
        tail = port.port.to_bytes(2, "big") + b"\0\0"
        out[abi.identify(name)] = b"".join([address + tail for address in dict.fromkeys(ready)])
    return out
