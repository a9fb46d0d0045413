"""What each group of pods may have to do with each class of peers: the rules that are wanted.

A group is there from the moment a pod is to have it until a moment after the last one has it no more, and what a policy
asked of peers is asked for as long. So classes are only refined before pods and rules change, and joined again when
nobody can tell the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from ebpfnet import abi
from ebpfnet.compile.policy.cite import Asked, Citation, cite
from ebpfnet.compile.policy.predicates import Predicate
from ebpfnet.compile.policy.regime import Parts, Regime, regime
from ebpfnet.compile.policy.statements import PortName, port_names
from ebpfnet.compile.policy.subjects import Subject
from ebpfnet.model.facts import Policy, Ref
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.policy.cells import NOBODY, Found, Settled
from ebpfnet.reconcile.policy.classes import Classes
from ebpfnet.reconcile.policy.entries import Entries, Entry, rule_key

Pairs = Collection[tuple[int, int]]
_Way = tuple[int, int]
"""A group and a direction."""


class Rules:
    """The rules of one group in one direction, by class; those that say what is said of everybody are left out."""

    __slots__ = ("entries", "everybody", "former", "regime")

    def __init__(self, now: Regime) -> None:
        self.regime = now
        self.former: frozenset[Predicate] = frozenset()
        """What it asked before, and is still asked for a moment."""
        self.everybody: Entry | None = None
        self.entries: dict[int, Entry] = {}


class Regimes:
    """All groups of this node's pods."""

    def __init__(self, classes: Classes, rules: Keyed, entries: Entries, *, graceful: bool = False) -> None:
        self.classes = classes
        self.entries = entries
        self.graceful = graceful
        self.subjects: dict[int, Subject] = {}
        """By group."""
        self.detours: Mapping[int, int] = {}
        """Classes that some go by, and where they are to be then."""
        self._rules = rules
        self._parts = Parts()
        self._ways: dict[_Way, Rules] = {}
        self._askers: dict[Predicate, dict[_Way, None]] = {}
        self._asking: dict[int, dict[_Way, None]] = {}  # the same, by the predicate's number
        self._groups_of: dict[Ref, dict[int, None]] = {}
        self._names_of: dict[Ref, tuple[Policy, frozenset[PortName]]] = {}
        self._new: dict[_Way, None] = {}
        self._again: dict[_Way, frozenset[Predicate] | None] = {}  # ways, and for whose peers; None: for all
        self._added: dict[Predicate, None] = {}
        self._idle: dict[Predicate, None] = {}  # asked by nobody any more
        self._former: dict[_Way, None] = {}

    # Groups and policies

    def add(self, subject: Subject, policies: Mapping[Ref, Policy]) -> None:
        """Take in that pods are to have a group."""
        self.subjects[subject.id] = subject
        for ref in subject.policies:
            self._groups_of.setdefault(ref, {})[subject.id] = None
        for direction in abi.Direction:
            way = subject.id, direction
            now = self._compile(subject, policies, direction)
            self._ways[way] = Rules(now)
            self._new[way] = None
            self._ask(way, now.predicates)

    def remove(self, group: int) -> None:
        """Take in that nobody has a group any more, and no packet is judged by it."""
        subject = self.subjects.pop(group)
        for ref in subject.policies:
            del self._groups_of[ref][group]
            if not self._groups_of[ref]:
                del self._groups_of[ref]
                self._parts.forget(ref)
                self._names_of.pop(ref, None)
        for direction in abi.Direction:
            way = group, direction
            rules = self._ways.pop(way)
            self._drop(way, rules.regime.predicates | rules.former)
            for waiting in (self._new, self._again, self._former):
                waiting.pop(way, None)
            for number in rules.entries:
                self._rules.ask(rule_key(group, number, direction), None)
            self._rules.ask(rule_key(group, NOBODY, direction), None)
            for entry in (rules.everybody, *rules.entries.values()):
                if entry is not None:
                    self.entries.release(entry)

    def groups_of(self, ref: Ref) -> list[int]:
        """Return the groups that a policy selects."""
        return list(self._groups_of.get(ref, ()))

    def renew(self, group: int, policies: Mapping[Ref, Policy]) -> None:
        """Compile a group's rules again: one of its policies is another one, or a port's name means another number."""
        subject = self.subjects[group]
        if any(ref not in policies for ref in subject.policies):
            return  # a policy is gone: its group goes, too, and says what it said until then
        for direction in abi.Direction:
            way = group, direction
            rules = self._ways[way]
            now = self._compile(subject, policies, direction)
            touched = now.touched(rules.regime)
            same = now.predicates == rules.regime.predicates
            if touched is not None and not touched and same:
                rules.regime = now
                continue
            if not same:
                self._ask(way, now.predicates - rules.regime.predicates)
                rules.former |= rules.regime.predicates - now.predicates
                rules.former -= now.predicates
                if rules.former:
                    self._former[way] = None
            rules.regime = now
            waiting = self._again.get(way, frozenset())
            self._again[way] = None if touched is None or waiting is None else waiting | touched

    def _compile(self, subject: Subject, policies: Mapping[Ref, Policy], direction: abi.Direction) -> Regime:
        asked = [self._named(policies[ref]) for ref in subject.policies] if direction == abi.Direction.EGRESS else []
        known = self.classes.groups.numbers
        numbers = {each: known(*each) for each in frozenset[PortName]().union(*asked)}
        return regime(subject, policies, direction, graceful=self.graceful, numbers=numbers, parts=self._parts)

    def _named(self, policy: Policy) -> frozenset[PortName]:
        """Return the named ports that a policy asks of destinations."""
        held = self._names_of.get(policy.ref)
        if held is None or held[0] is not policy:
            held = self._names_of[policy.ref] = policy, port_names(policy, abi.Direction.EGRESS)
        return held[1]

    def naming(self, names: Iterable[PortName]) -> list[int]:
        """Return the groups whose rules ask for ports of such names."""
        wanted = set(names)
        return list({way[0]: None for way, each in self._ways.items() if not each.regime.port_names.isdisjoint(wanted)})

    # What is asked

    def _ask(self, way: _Way, predicates: Iterable[Predicate]) -> None:
        for predicate in predicates:
            askers = self._askers.get(predicate)
            if askers is None:
                askers = self._askers[predicate] = {}
                if self._idle.pop(predicate, self) is self:
                    self._added[predicate] = None
            askers[way] = None
            number = self.classes.questions.numbers.get(predicate)
            if number is not None:
                self._asking.setdefault(number, {})[way] = None

    def _drop(self, way: _Way, predicates: Iterable[Predicate]) -> None:
        for predicate in predicates:
            askers = self._askers[predicate]
            del askers[way]
            number = self.classes.questions.numbers.get(predicate)
            if number is not None:
                self._asking[number].pop(way, None)
            if not askers:
                del self._askers[predicate]
                if self._added.pop(predicate, self) is self:
                    self._idle[predicate] = None

    def forget_former(self, held: Collection[int]) -> None:
        """Ask no longer what only former rules asked; ``held`` groups still have those."""
        for way in [way for way in self._former if way[0] not in held]:
            rules = self._ways[way]
            self._drop(way, rules.former)
            rules.former = frozenset()
            del self._former[way]
        gone = [(predicate, self.classes.questions.numbers[predicate]) for predicate in self._idle]
        self.classes.ask((), self._idle)
        self._idle = {}
        for _, number in gone:
            self._asking.pop(number, None)

    def idle(self, held: Collection[int]) -> bool:
        """Say whether something is asked that nobody needs; ``held`` groups need what they asked."""
        return bool(self._idle) or any(way[0] not in held for way in self._former)

    def numbers(self, group: int, direction: int) -> list[int]:
        """Return the classes of which something else is said than of everybody."""
        return list(self._ways[group, direction].entries)

    def cite(
        self, group: int, direction: abi.Direction, number: int, rule: int, protocol: int, port: int
    ) -> Citation | None:
        """Return what a rule that decided about a class stands for; None: nobody knows it (any more)."""
        rules, cell = self._ways.get((group, direction)), self.classes.cells.by_number.get(number)
        if rules is None or (cell is None and number != NOBODY):
            return None
        answers = self.classes.meaning(cell) if cell else frozenset[Predicate]()
        return cite(rules.regime, rule, Asked(answers, protocol, port))

    def telling_apart(self, pairs: Pairs) -> set[int]:
        """Return the groups that say something else of one class of a pair than of the other."""
        ways = self._ways.items() if pairs else ()
        return {way[0] for way, rules in ways if any(_pairs(rules, pairs, self.detours))}

    def too_open(self, pairs: Pairs) -> set[int]:
        """Return the groups that let one class of a pair do what they don't let the second one do."""
        found: set[int] = set()
        for way, rules in self._ways.items() if pairs else ():
            said = _pairs(rules, pairs, self.detours)
            if way[0] not in found and any(one.lets_pass_more_than(other) for one, other in said):
                found.add(way[0])
        return found

    def settle(self, found: Found | None = None) -> Settled:
        """Find everybody's class, and want the rules that follow."""
        self.classes.ask(self._added, ())
        for predicate in self._added:
            number = self.classes.questions.numbers[predicate]
            self._asking[number] = dict(self._askers[predicate])
        self._added = {}
        settled = self.classes.settle(found)
        for number, answers in settled.gone.items():
            for way in self.concerned(answers):
                self._want(way, number, None)
        for way in self._new:
            self._renew(way, None)
        for way, touched in self._again.items():
            self._renew(way, touched)
        numbers = self.classes.questions.numbers
        for number, before in settled.changed.items():
            now = self.classes.cells.by_number[number].answers
            for way in self.concerned(before | now):
                if way not in self._new and self._again.get(way, numbers) is not None:
                    self._judge(way, number)
        self._new, self._again = {}, {}
        return settled

    def concerned(self, answers: Iterable[int]) -> dict[_Way, None]:
        """Return the groups and directions that ask one of these."""
        return {way: None for answer in answers for way in self._asking.get(answer, ())}

    def _renew(self, way: _Way, touched: frozenset[Predicate] | None) -> None:
        rules = self._ways[way]
        everybody = self.entries.take(rules.regime.outcome(frozenset()), rules.regime.names)
        if rules.everybody is not None:
            self.entries.release(rules.everybody)
        if everybody is not rules.everybody:
            touched = None
        rules.everybody = everybody
        self._rules.ask(rule_key(way[0], NOBODY, way[1]), everybody.value)
        asked = rules.regime.predicates | rules.former if touched is None else touched
        known = self.classes.questions.numbers
        found = self.classes.cells.saying(known[each] for each in asked if each in known)
        for number in dict.fromkeys((*found, *rules.entries)) if touched is None else found:
            self._judge(way, number)

    def _judge(self, way: _Way, number: int) -> None:
        """Want what is decided for a class."""
        rules = self._ways[way]
        cell = self.classes.cells.by_number.get(number)
        if cell is None:
            self._want(way, number, None)
            return
        entry = self.entries.take(rules.regime.outcome(self.classes.meaning(cell)), rules.regime.names)
        if entry is rules.everybody:
            self.entries.release(entry)
            self._want(way, number, None)
        else:
            self._want(way, number, entry)

    def _want(self, way: _Way, number: int, entry: Entry | None) -> None:
        rules = self._ways[way]
        before = rules.entries.pop(number, None)
        if entry is not None:
            rules.entries[number] = entry
        if before is not None:
            self.entries.release(before)
        if entry is not before:
            self._rules.ask(rule_key(way[0], number, way[1]), entry.value if entry else None)


def _pairs(rules: Rules, pairs: Pairs, detours: Mapping[int, int]) -> Iterator[tuple[Entry, Entry]]:
    """Yield what is said of both classes where that is not the same."""
    if rules.everybody is None:
        return
    for pair in pairs:
        first, second = (rules.entries.get(detours.get(each, each), rules.everybody) for each in pair)
        if first is not second:
            yield first, second
