"""Pods that policies can't tell apart, and quickly those that a predicate may mean."""

from __future__ import annotations

from collections.abc import Iterator

from ebpfnet.compile.policy.predicates import HasPort, PodsWhere
from ebpfnet.model.facts import PodPort
from ebpfnet.model.labels import Labels
from ebpfnet.model.peers import Likeness
from ebpfnet.reconcile.policy.questions import NONE, Answers, Pair, needed


class Group:
    """Pods that are alike; ``plain`` are those of their addresses that say no more than the pods do."""

    __slots__ = ("answers", "likeness", "others", "plain")

    def __init__(self, likeness: Likeness) -> None:
        self.likeness = likeness
        self.answers: Answers = NONE
        self.plain: dict[bytes, None] = {}
        self.others: dict[bytes, None] = {}


class Groups:
    """All groups, by namespace, label and port."""

    def __init__(self) -> None:
        self._all: dict[Likeness, Group] = {}
        self._in: dict[str, dict[Group, None]] = {}
        self._with: dict[Pair, dict[Group, None]] = {}
        self._port: dict[tuple[str, int], dict[int, dict[Group, None]]] = {}
        self.namespaces: dict[str, Labels] = {}
        """The labels of the namespaces that are known."""

    def find(self, likeness: Likeness) -> Group | None:
        """Return the group of such pods, if there are any."""
        return self._all.get(likeness)

    def add(self, likeness: Likeness) -> Group:
        """Make a group of such pods."""
        group = self._all[likeness] = Group(likeness)
        namespace, labels, ports = likeness
        self._in.setdefault(namespace, {})[group] = None
        for pair in labels:
            self._with.setdefault(pair, {})[group] = None
        for port in ports:
            self._port.setdefault((port.name, port.protocol), {}).setdefault(port.port, {})[group] = None
        return group

    def remove(self, group: Group) -> None:
        """Forget a group that has no pods any more."""
        namespace, labels, ports = group.likeness
        del self._all[group.likeness]
        _take(self._in, namespace, group)
        for pair in labels:
            _take(self._with, pair, group)
        for port in ports:
            same = self._port[port.name, port.protocol]
            if port.port in same:  # a pod may give the same name and number twice
                _take(same, port.port, group)
            if not same:
                del self._port[port.name, port.protocol]

    def of(self, namespace: str) -> list[Group]:
        """Return the groups of a namespace."""
        return list(self._in.get(namespace, ()))

    def numbers(self, name: str, protocol: int) -> frozenset[int]:
        """Return every number that pods give a port of such a name."""
        return frozenset(self._port.get((name, protocol), ()))

    def knows(self, port: PodPort) -> bool:
        """Say whether pods that were known already call this number so."""
        return port.port in self._port.get((port.name, port.protocol), ())

    def meant(self, predicate: PodsWhere | HasPort) -> list[Group]:
        """Return the groups that a predicate means, and perhaps others."""
        if isinstance(predicate, HasPort):
            return list(self._port.get((predicate.name, predicate.protocol), {}).get(predicate.port, ()))
        if predicate.namespaces is None:
            return self.of(predicate.namespace)
        pairs = needed(predicate.pods)
        if pairs is not None:
            return list(dict.fromkeys(group for pair in pairs for group in self._with.get(pair, ())))
        chosen = (name for name, labels in self.namespaces.items() if predicate.namespaces.matches(labels))
        return [group for name in chosen for group in self._in.get(name, ())]

    def labels_of(self, group: Group) -> Labels | None:
        """Return the labels of a group's namespace; None: nobody knows."""
        return self.namespaces.get(group.likeness[0])

    def __iter__(self) -> Iterator[Group]:
        return iter(self._all.values())


def _take(groups: dict, key: object, group: Group) -> None:  # type: ignore[type-arg]
    same = groups[key]
    same.pop(group, None)
    if not same:
        del groups[key]
