"""Pods of this node to table entries; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.model.facts import IPAddress, Pod, Ref


@dataclass(frozen=True, slots=True)
class Wires:
    """The wires of a node: by pod (``NAMESPACE/NAME``) where their maker says whose they are, else by address."""

    named: Mapping[str, abi.Wire] = field(default_factory=dict)
    behind: Mapping[IPAddress, abi.Wire] = field(default_factory=dict)


class PodEntry(NamedTuple):
    """One address of a pod: key and value in ``pods``."""

    key: bytes
    value: bytes


def pod_label(pod: Pod) -> str:
    """Return the pod's name for people, which is also how its interface is marked."""
    return f"{pod.ref.namespace}/{pod.ref.name}"


def pod_id(pod: Pod) -> int:
    """Return the pod's id, key in ``names``."""
    return id_of(pod.ref)


def id_of(ref: Ref) -> int:
    """Return the id of a pod that may be gone."""
    return abi.identify(f"pod {ref.namespace}/{ref.name}")


def wire_of(pod: Pod, wires: Wires) -> abi.Wire | None:
    """Return a pod's wire, None while none is known, and for a pod with the host's network, which has none.

    One address is enough: an IPv6 address takes a second longer to come up.
    """
    if pod.host_network:
        return None
    named = wires.named.get(pod_label(pod))
    return named or next((wires.behind[each] for each in pod.addresses if each in wires.behind), None)


def owners(pods: Iterable[Pod], wires: Wires) -> dict[int, str]:
    """Return interface number to pod, for every wire that belongs to one."""
    found = ((wire_of(pod, wires), pod_label(pod)) for pod in pods)
    return {wire.ifindex: name for wire, name in found if wire}


def compile_pod(pod: Pod, wire: abi.Wire | None, group: int = 0) -> list[PodEntry]:
    """Return a pod's entries: one for each address once it has a wire here; none for host-network pods.

    ``group`` is what policies say of it (0: nothing).
    """
    if wire is None or pod.host_network:
        return []
    value = abi.Pod(wire, pod_id(pod), group).pack()
    return [PodEntry(abi.pack_address(address), value) for address in pod.addresses]
