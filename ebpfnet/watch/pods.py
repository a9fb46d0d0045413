"""Pods to facts: those of this node in whole, those of others as far as policies see them."""

from __future__ import annotations

import socket

from ebpfnet import abi
from ebpfnet.model.facts import Peer, Pod, PodPort, Problem, Ref
from ebpfnet.watch import schema
from ebpfnet.watch.fields import BadField, Decoded, labels_of, parse_address, parse_port, parse_protocol, unusable

OVER = frozenset({"Succeeded", "Failed"})


def _addresses(status: schema.PodStatus) -> list[str | None]:
    """Return a pod's addresses, none of one that is over: they may already be another pod's."""
    if status.phase in OVER:
        return []
    return [entry.ip for entry in status.pod_ips or ()] or ([status.pod_ip] if status.pod_ip else [])


def convert_peer(ref: Ref, item: schema.PeerObject) -> Decoded:
    """Return a pod of another node as a fact; raises ``BadField``. There are 150,000."""
    host = item.spec is not None and item.spec.host_network
    texts = _addresses(item.status) if item.status and not host else ()
    packed = [_packed(text or "", f"status.podIPs[{index}].ip") for index, text in enumerate(texts)]
    return Decoded(ref, Peer(ref, labels_of(item.metadata), b"".join(packed)))


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
    ports = []
    for number, container in enumerate(spec.containers or ()):
        for index, port in enumerate(container.ports or ()):
            field = f"spec.containers[{number}].ports[{index}]"
            protocol = parse_protocol(port.protocol, f"{field}.protocol")
            ports.append(PodPort(port.name or "", protocol, parse_port(port.container_port, f"{field}.containerPort")))
    problems = []
    host = bool(spec.host_network)
    for index, address in enumerate(() if over or host else addresses):
        if reason := unusable(address):
            raise BadField(f"status.podIPs[{index}].ip", f"{address} is {reason}")
    if not addresses and not over and not host and spec.node_name:
        problems.append(Problem(ref, "status.podIPs", "the pod has no address (yet): it is not connected"))
    fact = Pod(ref, spec.node_name or "", addresses, labels_of(item.metadata), tuple(ports), host, over)
    return Decoded(ref, fact, tuple(problems))
