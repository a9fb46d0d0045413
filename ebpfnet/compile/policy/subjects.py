"""Pods of this node as policies see them: who is under the same policies, with the same named ports, is one subject."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.policy.statements import Numbers, PortName, port_names
from ebpfnet.model.facts import ClusterNetworkPolicy, NetworkPolicy, Pod, Ref
from ebpfnet.model.labels import Labels


class NamedPort(NamedTuple):
    """A number that a subject gives a name which its policies' ingress rules speak of."""

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What policies say of a pod depends on this alone: ``policies`` and ``ports`` are sorted, each once.

    ``id`` is a hash of the rest, never 0: value of ``group`` in ``pods``.
    """

    policies: tuple[Ref, ...]
    ports: tuple[NamedPort, ...]
    id: int

    def numbers(self) -> Numbers:
        """Return what its ports are called."""
        found: dict[PortName, frozenset[int]] = {}
        for name, protocol, port in self.ports:
            found[name, protocol] = found.get((name, protocol), frozenset()) | {port}
        return found


def subject_of(
    pod: Pod,
    namespace_labels: Labels | None,
    policies: Iterable[NetworkPolicy],
    cluster_policies: Iterable[ClusterNetworkPolicy],
) -> Subject | None:
    """Return a pod's subject, None when no policy selects it; a pod in the host's network is outside of policy.

    ``policies`` of other namespaces than the pod's are passed over. ``namespace_labels`` None: not known (yet), so no
    policy of the cluster's selects it.
    """
    if pod.host_network:
        return None
    chosen: list[NetworkPolicy | ClusterNetworkPolicy] = [
        policy for policy in policies if policy.ref.namespace == pod.ref.namespace and policy.pods.matches(pod.labels)
    ]
    if namespace_labels is not None:
        chosen += [
            policy
            for policy in cluster_policies
            if policy.namespaces.matches(namespace_labels) and policy.pods.matches(pod.labels)
        ]
    if not chosen:
        return None
    ports = {NamedPort(port.name, port.protocol, port.port) for port in pod.ports if port.name}
    if ports:  # else no rule need be looked at
        asked = frozenset[PortName]().union(*(port_names(policy, abi.Direction.INGRESS) for policy in chosen))
        ports = {port for port in ports if (port.name, port.protocol) in asked}
    return make_subject((policy.ref for policy in chosen), ports)


def make_subject(policies: Iterable[Ref], ports: Iterable[NamedPort] = ()) -> Subject:
    """Return the subject of these policies and ports, in whatever order they come."""
    refs, named = tuple(sorted(set(policies))), tuple(sorted(set(ports)))
    words = [*map(str, refs), *(f"port {name} {protocol} {port}" for name, protocol, port in named)]
    return Subject(refs, named, abi.identify("\n".join(("subject", *words))))
