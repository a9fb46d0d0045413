"""What a verdict comes down to in a policy's own words: the rule, and which entry of its peers means the other end.

Asked of what was compiled, not of labels once more: the regime that the rules were made of, and the predicates that
the peer's class answers with yes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ebpfnet.compile.policy.phrases import peer_path, rule_path, say_everybody, say_peer, say_ports
from ebpfnet.compile.policy.predicates import Predicate
from ebpfnet.compile.policy.regime import Part, Regime
from ebpfnet.compile.policy.statements import Stage, Statement, rules_of


class Entry(NamedTuple):
    """An entry of a rule that means a peer. ``path`` is the rule's own where that names no peer."""

    policy: str
    rule: str
    path: str
    text: str
    ports: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return it as it is printed."""
        entry = self.path if self.path != self.rule else None
        return {"policy": self.policy, "rule": self.rule, "entry": entry, "text": self.text, "ports": [*self.ports]}


class Citation(NamedTuple):
    """The entry that decides: of those that come to the same (``also``) in the deciding rule the first as written.

    None: no rule's entry does. ``nearest`` are then those that allow the peer, but on other ports.
    """

    decides: Entry | None
    also: tuple[Entry, ...] = ()
    nearest: tuple[Entry, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it as it is printed."""
        also, nearest = ([each.document() for each in listed] for listed in (self.also, self.nearest))
        return {"matched": self.decides and self.decides.document(), "also": also, "nearest": nearest}


class Asked(NamedTuple):
    """A peer by what it answers with yes, and where it goes: for egress to the peer, for ingress from it."""

    answers: frozenset[Predicate]
    protocol: int
    port: int


def cite(under: Regime, rule: int, asked: Asked) -> Citation | None:
    """Return what a rule's id stands for when it decided about a peer; None: it is none of this regime's."""
    if rule not in under.names:
        return None
    for part in under.parts.values():
        for index, statement in enumerate(part.statements):
            if statement.rule == rule:
                return _of_rule(under, part, index, asked)
    return Citation(None, (), tuple(each for each, reached in _allowing(under, asked) if not reached))


def _of_rule(under: Regime, part: Part, index: int, asked: Asked) -> Citation:
    """Return the first entry of a rule that means the peer; others of it, and where any that allows will do, all."""
    statement = part.statements[index]
    mine = list(_entries(under, part, index, asked))
    others: list[Entry] = []
    if statement.stage == Stage.NAMESPACED:
        found = [each for each, reached in _allowing(under, asked) if reached]
        others = [each for each in found if each not in mine]
    return Citation(mine[0] if mine else None, (*mine[1:], *others))


def _allowing(under: Regime, asked: Asked) -> Iterator[tuple[Entry, bool]]:
    """Yield the entries of NetworkPolicies that allow the peer something, and whether this port is of it."""
    for _, part in sorted(under.parts.items()):
        for index, statement in enumerate(part.statements):
            if statement.stage == Stage.NAMESPACED and not statement.audited:
                reached = _reaches(statement, asked)
                yield from ((each, reached) for each in _entries(under, part, index, asked))


def _entries(under: Regime, part: Part, index: int, asked: Asked) -> Iterator[Entry]:
    """Yield the entries of a rule that mean the peer, as they are written."""
    rule = (rules_of(part.policy, under.direction) or ())[index]
    policy, where, ports = str(part.policy.ref), rule_path(under.direction, index), tuple(say_ports(rule.ports))
    clauses = part.statements[index].clauses
    if clauses is None:
        yield Entry(policy, where, where, say_everybody(rule), ports)
    for at, (needs, without) in enumerate(clauses or ()):
        if needs in asked.answers and asked.answers.isdisjoint(without):
            path = peer_path(under.direction, index, rule, at)
            yield Entry(policy, where, path, say_peer(rule.peers[at], rule), ports)


def _reaches(statement: Statement, asked: Asked) -> bool:
    return statement.ports is None or any(
        each.protocol == asked.protocol
        and each.first <= asked.port <= each.last
        and (each.needs is None or each.needs in asked.answers)
        for each in statement.ports
    )
