"""What policies of this node's pods need to know of other nodes: their pods, or the nodes themselves.

A policy that selects none of ours needs nothing. A NetworkPolicy selects pods of its own namespace, so an event about
one makes that namespace stale, one about a ClusterNetworkPolicy those that have pods here; nothing is looked at before
somebody asks. Pods in the host's network are not subject to policies, and one that is finished needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ebpfnet.model.facts import ClusterNetworkPolicy, Kind, Namespace, NetworkPolicy, Pod, Policy, Ref
from ebpfnet.model.labels import Labels

Kinds = frozenset[Kind]
NONE: Kinds = frozenset()


def needs(policies: Iterable[Policy], pods: Iterable[Pod], namespace: Labels = ()) -> Kinds:
    """Say what policies that may select pods of a namespace with these labels need: ``PEER``, ``NODE`` or both."""
    labels = {pod.labels for pod in pods if not (pod.host_network or pod.finished)}
    found: set[Kind] = set()
    for policy in policies if labels else ():
        kinds = _means(policy) - found
        if kinds and _is_for(policy, namespace) and any(map(policy.pods.matches, labels)):
            found |= kinds
    return frozenset(found)


def _means(policy: Policy) -> set[Kind]:
    nodes = isinstance(policy, ClusterNetworkPolicy) and policy.has_node_peers
    return ({Kind.PEER} if policy.has_pod_peers else set()) | ({Kind.NODE} if nodes else set())


def _is_for(policy: Policy, namespace: Labels) -> bool:
    return isinstance(policy, NetworkPolicy) or policy.namespaces.matches(namespace)


class Demand:
    """The answer for the whole node, kept while policies, namespaces and its pods come and go."""

    def __init__(self) -> None:
        self._policies: dict[str, dict[Ref, NetworkPolicy]] = {}
        self._pods: dict[str, dict[Ref, Pod]] = {}
        self._cluster_policies: dict[Ref, ClusterNetworkPolicy] = {}
        self._labels: dict[str, Labels] = {}
        self._stale: set[str] = set()
        self._needing: dict[str, Kinds] = {}

    def set(self, fact: Policy | Namespace | Pod) -> None:
        """Take in a policy, a namespace or a pod of this node."""
        match fact:
            case Pod():
                self._pods.setdefault(fact.ref.namespace, {})[fact.ref] = fact
                self._stale.add(fact.ref.namespace)
            case NetworkPolicy():
                self._policies.setdefault(fact.ref.namespace, {})[fact.ref] = fact
                self._stale.add(fact.ref.namespace)
            case ClusterNetworkPolicy():
                self._cluster_policies[fact.ref] = fact
                self._stale.update(self._pods)
            case Namespace():
                self._labels[fact.ref.name] = fact.labels
                self._stale.add(fact.ref.name)

    def drop(self, ref: Ref) -> None:
        """Take one out; one that is not there is no error."""
        match ref.kind:
            case Kind.CLUSTER_NETWORK_POLICY:
                if self._cluster_policies.pop(ref, None):
                    self._stale.update(self._pods)
            case Kind.NAMESPACE:
                self._labels.pop(ref.name, None)
                self._stale.add(ref.name)
            case _:
                self._drop_from(self._policies if ref.kind == Kind.NETWORK_POLICY else self._pods, ref)

    def _drop_from(self, facts: dict[str, dict[Ref, NetworkPolicy]] | dict[str, dict[Ref, Pod]], ref: Ref) -> None:
        here = facts.get(ref.namespace)
        if here and here.pop(ref, None):
            self._stale.add(ref.namespace)
            if not here:
                del facts[ref.namespace]

    @property
    def kinds(self) -> Kinds:
        """What is needed now: ``PEER``, ``NODE``, both or neither."""
        for namespace in self._stale:
            pods = self._pods.get(namespace)
            found = NONE
            if pods:
                policies: list[Policy] = [*self._policies.get(namespace, {}).values()]
                policies += self._cluster_policies.values()
                found = needs(policies, pods.values(), self._labels.get(namespace, ()))
            if found:
                self._needing[namespace] = found
            else:
                self._needing.pop(namespace, None)
        self._stale.clear()
        return NONE.union(*self._needing.values())
