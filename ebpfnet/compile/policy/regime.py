"""What a subject is under in one direction: prepared once, then asked for each kind of peer.

A policy's statements are a ``Part``, compiled once for all subjects that it selects; a regime joins the parts of its
subject's policies, by the predicates that they ask, so that what is looked at for a peer is what speaks of him.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.policy.outcome import Isolation, Outcome, View, decide, deciding, in_order
from ebpfnet.compile.policy.predicates import Predicate
from ebpfnet.compile.policy.statements import Numbers, PortName, Statement, port_names, rules_of, statements_of
from ebpfnet.compile.policy.subjects import Subject
from ebpfnet.model.facts import NetworkPolicy, Policy, Ref

KEPT = 256
"""Parts of one policy and direction that are kept: one for each choice of numbers that its named ports have."""

MANY = 16
"""Statements of one predicate, from which on it pays to look for those that hide others."""

_Asked = tuple[tuple[frozenset[Predicate], Statement], ...]
"""Statements that speak of who answers one predicate with yes, unless he does so with one of these others."""


class Part:
    """A policy's statements of one direction, and what they ask."""

    __slots__ = ("asked", "everybody", "isolates", "names", "needs", "policy", "port_names", "predicates", "statements")

    def __init__(self, policy: Policy, direction: abi.Direction, numbers: Numbers) -> None:
        self.policy = policy
        self.statements = statements_of(policy, direction, numbers)
        self.port_names = port_names(policy, direction)
        self.isolates = isinstance(policy, NetworkPolicy) and rules_of(policy, direction) is not None
        self.everybody = [each for each in self.statements if each.clauses is None]
        asked: dict[Predicate, list[tuple[frozenset[Predicate], Statement]]] = {}
        predicates: set[Predicate] = set()
        for statement in self.statements:
            predicates.update(asked_by(statement))
            for needs, without in statement.clauses or ():
                asked.setdefault(needs, []).append((without, statement))
        self.asked: dict[Predicate, _Asked] = {needs: tuple(found) for needs, found in asked.items()}
        self.needs = frozenset(self.asked)
        self.predicates = frozenset(predicates)
        self.names = {each.rule: each.text for each in self.statements}


def asked_by(statement: Statement) -> set[Predicate]:
    """Return all that a statement asks of a peer."""
    found: set[Predicate] = {reach.needs for reach in statement.ports or () if reach.needs is not None}
    for needs, without in statement.clauses or ():
        found.add(needs)
        found |= without
    return found


class Parts:
    """Parts that were compiled, so that a policy which many subjects share, or that did not change, is not again."""

    def __init__(self) -> None:
        self._held: dict[tuple[Ref, abi.Direction], tuple[Policy, frozenset[PortName], dict[_Key, Part]]] = {}

    def of(self, policy: Policy, direction: abi.Direction, numbers: Numbers) -> Part:
        """Return a policy's part; ``numbers`` may be more than it needs."""
        held = self._held.get((policy.ref, direction))
        if held is None or held[0] is not policy:
            held = (policy, port_names(policy, direction), {})
            self._held[policy.ref, direction] = held
        key = tuple((name, numbers.get(name, frozenset())) for name in sorted(held[1]))
        part = held[2].get(key)
        if part is None:
            if len(held[2]) >= KEPT:
                held[2].clear()
            part = held[2][key] = Part(policy, direction, numbers)
        return part

    def forget(self, ref: Ref) -> None:
        """Drop a policy that is gone."""
        for direction in abi.Direction:
            self._held.pop((ref, direction), None)


_Key = tuple[tuple[PortName, frozenset[int]], ...]


class _Views(NamedTuple):
    enforced: View
    full: View | None  # None: nothing is audited


class Regime:
    """What a subject is under in one direction. ``predicates``: all that its verdict can depend on.

    ``names``: rule id to text for people, of all that may decide. ``port_names``: the named ports that its rules ask
    of a peer; it must be made again when one of them gets another number.
    """

    def __init__(self, parts: Mapping[Ref, Part], direction: abi.Direction, *, graceful: bool) -> None:
        self.direction = direction
        self.parts = parts
        self._graceful = graceful
        self._memo: dict[frozenset[Predicate], Outcome] = {}
        self._everybody = deciding(each for part in parts.values() for each in part.everybody)
        self._join()
        self._views = self._see()
        self.names: dict[int, str] = {}
        for part in parts.values():
            self.names.update(part.names)
        for view in self._views:
            if view is not None and view.isolation is not None:
                self.names.update(view.isolation.names)
        self.port_names: frozenset[PortName] = frozenset()
        if direction == abi.Direction.EGRESS:
            self.port_names = frozenset[PortName]().union(*(part.port_names for part in parts.values()))

    def outcome(self, cell: frozenset[Predicate]) -> Outcome:
        """Return what is decided for peers that answer these predicates with yes, among any others."""
        relevant = cell & self.predicates
        found = self._memo.get(relevant)
        if found is None:
            found = self._memo[relevant] = decide(self._about(relevant), relevant, *self._views)
        return found

    def touched(self, before: Regime) -> frozenset[Predicate] | None:
        """Return the predicates that tell whose outcome may be another than it was: of who answers one with yes.

        None: anybody's.
        """
        if self._views != before._views:
            return None
        found: set[Predicate] = set()
        for ref in self.parts.keys() | before.parts.keys():
            now, then = self.parts.get(ref), before.parts.get(ref)
            if now is then:
                continue
            changed = set(now.statements if now else ()) ^ set(then.statements if then else ())
            for statement in changed:
                needed = _needed(statement)
                if needed is None:
                    return None
                found |= needed
        return frozenset(found)

    def _join(self) -> None:
        """Sets and dicts are joined whole: a predicate's own hash is computed again for those of two parts only."""
        asked: dict[Predicate, _Asked] = {}
        seen: set[Predicate] = set()
        predicates: set[Predicate] = set()
        many: set[Predicate] = set()
        for part in self.parts.values():
            predicates |= part.predicates
            shared = {each: asked[each] + part.asked[each] for each in seen & part.needs}
            asked.update(part.asked)
            asked.update(shared)
            many.update(each for each, found in shared.items() if len(found) > MANY)
            seen |= part.needs
        for each in many:
            asked[each] = _thinned(asked[each])
        self._asked = asked
        self.predicates = frozenset(predicates)

    def _see(self) -> _Views:
        parts = self.parts.values()
        full = View(
            self._isolation([part.policy for part in parts if part.isolates]), audited=True, graceful=self._graceful
        )
        if not any(part.policy.audited for part in parts):
            return _Views(full, None)
        kept = [part.policy for part in parts if part.isolates and not part.policy.audited]
        return _Views(View(self._isolation(kept), audited=False, graceful=self._graceful), full)

    def _isolation(self, policies: list[Policy]) -> Isolation | None:
        return Isolation.by(policies, self.direction, graceful=self._graceful) if policies else None

    def _about(self, relevant: frozenset[Predicate]) -> list[Statement]:
        """Return the statements that speak of a peer, in their order."""
        found = {id(each): each for each in self._everybody}
        for predicate in relevant:
            for without, statement in self._asked.get(predicate, ()):
                if relevant.isdisjoint(without):
                    found[id(statement)] = statement
        return sorted(found.values(), key=in_order)


def _thinned(asked: _Asked) -> _Asked:
    """Leave out statements that others of the same peers hide."""
    kept = deciding(statement for without, statement in asked if not without)
    return *((frozenset[Predicate](), statement) for statement in kept), *(each for each in asked if each[0])


def _needed(statement: Statement) -> set[Predicate] | None:
    """Return what whoever it speaks of answers one of with yes; None: it may speak of anybody."""
    if statement.clauses is not None:
        return {clause.needs for clause in statement.clauses}
    ports = statement.ports
    if ports is None or any(reach.needs is None for reach in ports):
        return None
    return {reach.needs for reach in ports if reach.needs is not None}


def regime(
    subject: Subject,
    policies: Mapping[Ref, Policy],
    direction: abi.Direction,
    *,
    graceful: bool,
    numbers: Numbers | None = None,
    parts: Parts | None = None,
) -> Regime:
    """Return what a subject is under. ``policies`` has all of the subject's.

    ``graceful``: the agent's own default. ``numbers``: all that any peer that is known gives a port's name; they
    matter to egress. ``parts`` keeps what was compiled for the next time.
    """
    parts = Parts() if parts is None else parts
    numbers = subject.numbers() if direction == abi.Direction.INGRESS else numbers or {}
    found = {ref: parts.of(policies[ref], direction, numbers) for ref in subject.policies}
    return Regime(found, direction, graceful=graceful)
