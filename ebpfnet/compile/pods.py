"""Pods of this node to table entries; pure."""

from __future__ import annotations

from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.model.facts import Pod


class PodEntry(NamedTuple):
    """One address of a pod: key and value in ``pods``."""

    key: bytes
    value: bytes


def pod_label(pod: Pod) -> str:
    """Return the pod's name for people, which is also how its interface is marked."""
    return f"{pod.ref.namespace}/{pod.ref.name}"


def pod_id(pod: Pod) -> int:
    """Return the pod's id, key in ``names``."""
    return abi.identify(f"pod {pod_label(pod)}")


def compile_pod(pod: Pod, wire: abi.Wire | None) -> list[PodEntry]:
    """Return a pod's entries: one for each address once it has a wire here; none for host-network pods."""
    if wire is None or pod.host_network:
        return []
    value = abi.Pod(wire, pod_id(pod)).pack()
    return [PodEntry(abi.pack_address(address), value) for address in pod.addresses]
