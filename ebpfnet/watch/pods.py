"""Pods to facts: those of this node in whole, those of others as far as policies see them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ebpfnet import abi
from ebpfnet.model.facts import Peer, Pod, PodPort, Problem, Ref
from ebpfnet.model.peers import named_ports
from ebpfnet.watch import schema
from ebpfnet.watch.fields import BadField, Decoded, labels_of, parse_address, parse_port, parse_protocol, unusable

ALWAYS = "Always"
OVER = frozenset({"Succeeded", "Failed"})


def _addresses(status: schema.PodStatus) -> list[str | None]:
    """Return a pod's addresses, none of one that is over: they may already be another pod's."""
    if status.phase in OVER:
        return []
    return [entry.ip for entry in status.pod_ips or ()] or ([status.pod_ip] if status.pod_ip else [])


def _ports(spec: schema.PeerSpec) -> Iterator[tuple[str, schema.ContainerPort]]:
    """Yield the ports of containers that live as long as the pod, and where they stand.

    Those of a sidecar are among them (``FindPort`` in pkg/api/v1/pod/util.go of Kubernetes, KEP-753).
    """
    for number, container in enumerate(spec.containers or ()):
        for index, port in enumerate(container.ports or ()):
            yield f"spec.containers[{number}].ports[{index}]", port
    for number, init in enumerate(spec.init_containers or ()):
        for index, port in enumerate((init.ports if init.restart_policy == ALWAYS else None) or ()):
            yield f"spec.initContainers[{number}].ports[{index}]", port


def _port(port: schema.ContainerPort, field: str) -> PodPort:
    protocol = parse_protocol(port.protocol, f"{field}.protocol")
    return PodPort(port.name or "", protocol, parse_port(port.container_port, f"{field}.containerPort"))


_Ports = tuple[tuple[str, str | None, int], ...]
_SEEN_MAX = 4096
_seen: dict[_Ports, tuple[PodPort, ...]] = {}


def _named_ports(spec: schema.PeerSpec) -> tuple[PodPort, ...]:
    """Return the ports that have a name; those of pods that are alike are one object, and looked at once."""
    found = [
        (port.name, port.protocol, port.container_port)
        for container in spec.containers or ()
        if container.ports
        for port in container.ports
        if port.name
    ]
    if spec.init_containers is not None:
        found += [
            (port.name, port.protocol, port.container_port)
            for container in spec.init_containers
            if container.ports and container.restart_policy == ALWAYS
            for port in container.ports
            if port.name
        ]
    if not found:
        return ()
    key: _Ports = tuple(found)
    made = _seen.get(key)
    if made is None:
        made = named_ports([_port(port, field) for field, port in _ports(spec) if port.name])
        if len(_seen) < _SEEN_MAX:
            _seen[key] = made
    return made


def convert_peer(ref: Ref, item: schema.PeerObject) -> Decoded:
    """Return a pod of another node as a fact; raises ``BadField``. There are 150,000."""
    host = item.spec is not None and item.spec.host_network
    texts = _addresses(item.status) if item.status and not host else ()
    packed = [_packed(text or "", f"status.podIPs[{index}].ip") for index, text in enumerate(texts)]
    ports = _named_ports(item.spec) if packed and item.spec else ()
    return Decoded(ref, Peer(ref, labels_of(item.metadata), b"".join(packed), ports))


def _packed(text: str, field: str) -> bytes:
    """Return an address as 16 bytes, parsed by the C library; what that does not like is looked at again slowly."""
    v4 = ":" not in text
    try:
        raw = socket.inet_pton(socket.AF_INET if v4 else socket.AF_INET6, text)
    except (OSError, ValueError):
        raw = b""
    if not raw or raw.startswith(abi.V4_PREFIX):
        return abi.pack_address(parse_address(text, field))
    return abi.V4_PREFIX + raw if v4 else raw


def convert_pod(ref: Ref, item: schema.PodObject) -> Decoded:
    """Return a pod as a fact; raises ``BadField``."""
    spec, status = item.spec or schema.PodSpec(), item.status or schema.PodStatus()
    over = status.phase in OVER
    addresses = tuple(
        parse_address(text, f"status.podIPs[{index}].ip") for index, text in enumerate(_addresses(status))
    )
    ports = [_port(port, field) for field, port in _ports(spec)]
    problems = []
    host = bool(spec.host_network)
    for index, address in enumerate(() if over or host else addresses):
        if reason := unusable(address):
            raise BadField(f"status.podIPs[{index}].ip", f"{address} is {reason}")
    if not addresses and not over and not host and spec.node_name:
        problems.append(Problem(ref, "status.podIPs", "the pod has no address (yet): it is not connected"))
    fact = Pod(ref, spec.node_name or "", addresses, labels_of(item.metadata), tuple(ports), host, over)
    return Decoded(ref, fact, tuple(problems))
