"""Predicates that are asked at present, each with a number, and found quickly for a pod, a node or an address."""

from __future__ import annotations

from collections.abc import Iterator

from ebpfnet.compile.policy.predicates import HasPort, NodesWhere, PodsWhere, Predicate, Within
from ebpfnet.model.facts import PodPort
from ebpfnet.model.labels import Labels, Selector
from ebpfnet.reconcile.policy.blocks import Blocks, block_of

Pair = tuple[str, str]
Answers = frozenset[int]
NONE: Answers = frozenset()


def needed(selector: Selector) -> list[Pair] | None:
    """Return labels of which all that a selector selects have one; None: it needs none."""
    for key, values, negated in selector.requirements:
        if values is not None and not negated:
            return [(key, value) for value in values]
    return None


class _Index:
    """Predicates by a label that is needed, and those that need none."""

    def __init__(self) -> None:
        self.labelled: dict[Pair, set[int]] = {}
        self.others: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.labelled or self.others)

    def set(self, number: int, pairs: list[Pair] | None) -> None:
        if pairs is None:
            self.others.add(number)
        for pair in pairs or ():
            self.labelled.setdefault(pair, set()).add(number)

    def drop(self, number: int, pairs: list[Pair] | None) -> None:
        self.others.discard(number)
        for pair in pairs or ():
            same = self.labelled[pair]
            same.discard(number)
            if not same:
                del self.labelled[pair]

    def find(self, labels: Labels) -> Iterator[int]:
        yield from self.others
        if self.labelled:
            for pair in labels:
                yield from self.labelled.get(pair, ())


class Questions:
    """All that is asked. Numbers are never used twice."""

    def __init__(self) -> None:
        self.numbers: dict[Predicate, int] = {}
        self.blocks = Blocks()
        self._asked: dict[int, Predicate] = {}
        self._next = 0
        self._near: dict[str, _Index] = {}  # of pods of one namespace
        self._far = _Index()  # of pods of namespaces with some labels, by the pods' labels
        self._wide = _Index()  # the same where pods need none: by the namespaces' labels
        self._chosen: dict[int, dict[Labels, bool]] = {}  # whether a predicate means namespaces with such labels
        self._ports: dict[HasPort, int] = {}
        self._nodes: dict[int, NodesWhere] = {}

    def predicate(self, number: int) -> Predicate:
        """Return what is asked under a number."""
        return self._asked[number]

    def add(self, predicate: Predicate) -> int:
        """Ask something that was not asked; returns its number."""
        number = self._next
        self._next += 1
        self.numbers[predicate] = number
        self._asked[number] = predicate
        match predicate:
            case PodsWhere():
                index, pairs = self._place(predicate)
                index.set(number, pairs)
            case HasPort():
                self._ports[predicate] = number
            case NodesWhere():
                self._nodes[number] = predicate
            case Within(block):
                self.blocks.set(block_of(block), number)
        return number

    def remove(self, predicate: Predicate) -> int:
        """Ask something no longer; returns its number."""
        number = self.numbers.pop(predicate)
        del self._asked[number]
        self._chosen.pop(number, None)
        match predicate:
            case PodsWhere(namespace):
                index, pairs = self._place(predicate)
                index.drop(number, pairs)
                if namespace in self._near and not self._near[namespace]:
                    del self._near[namespace]
            case HasPort():
                del self._ports[predicate]
            case NodesWhere():
                del self._nodes[number]
            case Within(block):
                self.blocks.drop(block_of(block))
        return number

    def _place(self, predicate: PodsWhere) -> tuple[_Index, list[Pair] | None]:
        pairs = needed(predicate.pods)
        if predicate.namespaces is None:
            return self._near.setdefault(predicate.namespace, _Index()), pairs
        if pairs is not None:
            return self._far, pairs
        return self._wide, needed(predicate.namespaces)

    def of_pods(
        self, namespace: str, namespace_labels: Labels | None, labels: Labels, ports: tuple[PodPort, ...]
    ) -> Answers:
        """Return what pods answer with yes; nobody knows the labels of their namespace: None."""
        candidates: set[int] = set()
        if (near := self._near.get(namespace)) is not None:
            candidates.update(near.find(labels))
        if namespace_labels is not None:
            candidates.update(self._far.find(labels))
            candidates.update(self._wide.find(namespace_labels))
        found = [number for number in candidates if self._means(number, namespace, namespace_labels, labels)]
        if self._ports:
            asked = (self._ports.get(HasPort(each.name, each.protocol, each.port)) for each in ports)
            found += [number for number in asked if number is not None]
        return frozenset(found) if found else NONE

    def _means(self, number: int, namespace: str, namespace_labels: Labels | None, labels: Labels) -> bool:
        """Say whether pods are meant; which namespaces are is remembered: they have many pods."""
        asked = self._asked[number]
        assert isinstance(asked, PodsWhere)
        if asked.namespaces is None or namespace_labels is None:
            return asked.means(namespace, (), labels)
        known = self._chosen.setdefault(number, {})
        chosen = known.get(namespace_labels)
        if chosen is None:
            chosen = known[namespace_labels] = asked.namespaces.matches(namespace_labels)
        return chosen and asked.pods.matches(labels)

    def of_node(self, labels: Labels) -> Answers:
        """Return what a node answers with yes."""
        return frozenset(number for number, asked in self._nodes.items() if asked.nodes.matches(labels))
