"""Which policies select each pod of this node: only those that select one matter here.

Policies are looked at by namespace, and those of the cluster all; pods that are alike share the answer. An event asks
one policy about all kinds of pods that it may select, or all policies about one kind of pods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ebpfnet.abi import Direction
from ebpfnet.compile.policy.statements import port_names
from ebpfnet.compile.policy.subjects import Subject, subject_of
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Kind, NetworkPolicy, Pod, Policy, Ref
from ebpfnet.model.labels import Labels, Selector
from ebpfnet.model.peers import Likeness, named_ports


def selection(policy: Policy) -> tuple[Selector, ...]:
    """Return what selects the pods of a policy."""
    return (policy.pods,) if isinstance(policy, NetworkPolicy) else (policy.namespaces, policy.pods)


def narrowed(policy: Policy, other: Policy) -> Policy:
    """Return a policy for those pods only that another version of it selects, too."""
    pods = Selector((*policy.pods.requirements, *other.pods.requirements))
    if isinstance(policy, NetworkPolicy) or isinstance(other, NetworkPolicy):
        return replace(policy, pods=pods)
    chosen = Selector((*policy.namespaces.requirements, *other.namespaces.requirements))
    return replace(policy, pods=pods, namespaces=chosen)


class Sort:
    """Pods of this node that no policy can tell apart, what selects them, and what they are subject to."""

    __slots__ = ("example", "likeness", "pods", "selected", "subject")

    def __init__(self, likeness: Likeness, example: Pod) -> None:
        self.likeness = likeness
        self.example = example
        self.pods: dict[Ref, None] = {}
        self.selected: dict[Ref, Policy] = {}
        self.subject: Subject | None = None


class Subjects:
    """All pods of this node that have a place of their own in the network."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._policies: dict[str, dict[Ref, NetworkPolicy]] = {}
        self._sorts: dict[Likeness, Sort] = {}
        self._sort_of: dict[Ref, Sort] = {}
        self._in: dict[str, dict[Sort, None]] = {}
        self._stale: dict[Sort, None] = {}  # their selection is right, their subject may not be
        self.changed: dict[Ref, None] = {}
        """Pods whose subject may be another; who follows them empties it."""

    def subject(self, ref: Ref) -> Subject | None:
        """Return what a pod is subject to."""
        sort = self._sort_of.get(ref)
        return sort.subject if sort else None

    def policies(self, subject: Subject) -> dict[Ref, Policy]:
        """Return a subject's policies."""
        cluster = self._cluster
        found: dict[Ref, Policy] = {}
        for ref in subject.policies:
            each = cluster.policies.get(ref) or cluster.cluster_policies.get(ref)
            if each is not None:
                found[ref] = each
        return found

    def selected(self) -> dict[Ref, list[Ref]]:
        """Return the pods that each policy selects, of those that select any."""
        found: dict[Ref, list[Ref]] = {}
        for sort in self._sorts.values():
            for ref in sort.selected:
                found.setdefault(ref, []).extend(sort.pods)
        return found

    # What comes in

    def set_pod(self, ref: Ref, pod: Pod | None) -> None:
        """Take a pod of this node in, or with None that it is gone."""
        before = self._sort_of.get(ref)
        if pod is None or pod.host_network:
            if before is not None:
                self._leave(ref, before)
            return
        likeness = Likeness(ref.namespace, pod.labels, named_ports(pod.ports))
        if before is not None:
            if before.likeness == likeness:
                return
            self._leave(ref, before)
        sort = self._sorts.get(likeness)
        if sort is None:
            sort = self._sorts[likeness] = Sort(likeness, pod)
            self._in.setdefault(ref.namespace, {})[sort] = None
            self._select(sort)
        sort.pods[ref] = None
        self._sort_of[ref] = sort
        self.changed[ref] = None

    def _leave(self, ref: Ref, sort: Sort) -> None:
        del self._sort_of[ref], sort.pods[ref]
        self.changed[ref] = None
        if not sort.pods:
            namespace = sort.likeness.namespace
            del self._sorts[sort.likeness], self._in[namespace][sort]
            if not self._in[namespace]:
                del self._in[namespace]
            self._stale.pop(sort, None)

    def set_policy(self, ref: Ref, policy: Policy | None) -> bool:
        """Take a policy in, or with None that it is gone; returns whether it selects, or selected, a pod here."""
        if ref.kind == Kind.NETWORK_POLICY:
            here = self._policies.setdefault(ref.namespace, {})
            here.pop(ref, None)
            if isinstance(policy, NetworkPolicy):
                here[ref] = policy
            if not here:
                del self._policies[ref.namespace]
            sorts: Iterable[Sort] = self._in.get(ref.namespace, ())
        else:
            sorts = self._sorts.values()
        touched = False
        for sort in sorts:
            was = sort.selected.pop(ref, None)
            if policy is not None and self._selects(policy, sort):
                sort.selected[ref] = policy
                touched = True
                if was is not None and not any(port_names(each, Direction.INGRESS) for each in (was, policy)):
                    continue  # the same policies, and none asks what its ports are called
            elif was is None:
                continue
            self._stale[sort] = None
            touched = True
        return touched

    def set_namespace(self, name: str) -> None:
        """Take in that a namespace's labels are others."""
        for sort in self._in.get(name, ()):
            self._select(sort)

    def _labels(self, namespace: str) -> Labels | None:
        found = self._cluster.namespaces.get(Ref(Kind.NAMESPACE, "", namespace))
        return found.labels if found else None

    def _selects(self, policy: Policy, sort: Sort) -> bool:
        if isinstance(policy, NetworkPolicy):
            return policy.pods.matches(sort.likeness.labels)
        labels = self._labels(sort.likeness.namespace)
        chosen = labels is not None and policy.namespaces.matches(labels)
        return chosen and policy.pods.matches(sort.likeness.labels)

    def _select(self, sort: Sort) -> None:
        candidates: list[Policy] = [*self._policies.get(sort.likeness.namespace, {}).values()]
        candidates += self._cluster.cluster_policies.values()
        sort.selected = {each.ref: each for each in candidates if self._selects(each, sort)}
        self._stale[sort] = None

    def settle(self) -> None:
        """Find the subjects of what is stale."""
        for sort in self._stale:
            mine = [each for each in sort.selected.values() if isinstance(each, NetworkPolicy)]
            others = [each for each in sort.selected.values() if not isinstance(each, NetworkPolicy)]
            subject = subject_of(sort.example, self._labels(sort.likeness.namespace), mine, others)
            if subject != sort.subject:
                sort.subject = subject
                self.changed.update(sort.pods)
        self._stale = {}
