"""Whether a policy that selects a pod of this node has other pods as peers; only then other nodes' pods matter here.

Policies select pods of their own namespace, so an event makes one namespace stale, and nothing is looked at before
somebody asks. Pods in the host's network are not subject to policies, and one that is finished needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ebpfnet.model.facts import NetworkPolicy, Pod, Ref


def needs_peers(policies: Iterable[NetworkPolicy], pods: Iterable[Pod]) -> bool:
    """Say whether one of a namespace's policies selects one of its pods and has pods as peers."""
    labels = {pod.labels for pod in pods if not (pod.host_network or pod.finished)}
    return any(policy.pods.matches(each) for policy in policies if policy.has_pod_peers for each in labels)


class Demand:
    """The answer for the whole node, kept while policies and its pods come and go."""

    def __init__(self) -> None:
        self._policies: dict[str, dict[Ref, NetworkPolicy]] = {}
        self._pods: dict[str, dict[Ref, Pod]] = {}
        self._stale: set[str] = set()
        self._needing: set[str] = set()

    def set(self, fact: NetworkPolicy | Pod) -> None:
        """Take a policy or a pod of this node in."""
        if isinstance(fact, Pod):
            self._pods.setdefault(fact.ref.namespace, {})[fact.ref] = fact
        else:
            self._policies.setdefault(fact.ref.namespace, {})[fact.ref] = fact
        self._stale.add(fact.ref.namespace)

    def drop(self, ref: Ref) -> None:
        """Take one out; one that is not there is no error."""
        for facts in (self._policies, self._pods):
            here = facts.get(ref.namespace)
            if here and here.pop(ref, None):
                self._stale.add(ref.namespace)
                if not here:
                    del facts[ref.namespace]

    def __bool__(self) -> bool:
        """Whether other nodes' pods are needed now."""
        for namespace in self._stale:
            policies, pods = self._policies.get(namespace, {}), self._pods.get(namespace, {})
            if needs_peers(policies.values(), pods.values()):
                self._needing.add(namespace)
            else:
                self._needing.discard(namespace)
        self._stale.clear()
        return bool(self._needing)
