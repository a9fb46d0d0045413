"""What a policy asks of a peer: small pure values, equal when they ask the same.

Addresses that give the same answer to every predicate of this node are one class. Two kinds are asked of a pod, two of
an address alone; a pod's address is asked all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from ebpfnet.model.facts import IPNetwork
from ebpfnet.model.labels import Labels, Selector


class PodsWhere(NamedTuple):
    """Pods with such labels, of one namespace, or (``namespaces`` given) of every one with such labels."""

    namespace: str
    namespaces: Selector | None
    pods: Selector

    def means(self, namespace: str, namespace_labels: Labels, labels: Labels) -> bool:
        """Say whether pods of a namespace with these labels are meant."""
        if self.namespaces is None:
            return self.namespace == namespace and self.pods.matches(labels)
        return self.namespaces.matches(namespace_labels) and self.pods.matches(labels)


class HasPort(NamedTuple):
    """Pods that call this port so: what a rule with a named port asks of a destination, once for each number."""

    name: str
    protocol: int
    port: int


class Within(NamedTuple):
    """Addresses of a block."""

    block: IPNetwork


class NodesWhere(NamedTuple):
    """Addresses of nodes with such labels."""

    nodes: Selector


Predicate = PodsWhere | HasPort | Within | NodesWhere
