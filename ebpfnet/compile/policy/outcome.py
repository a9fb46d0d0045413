"""What is decided for peers of a class: one answer for everything, and others for ranges of ports.

The order is that of ClusterNetworkPolicy's tiers, with NetworkPolicy between them (KEP-2091): in the tier Admin the
first rule that fits decides or passes on; then a subject that a NetworkPolicy isolates is allowed what any of its rules
allows and nothing else; one that none isolates is asked for in the tier Baseline; what nobody decided is allowed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Verdict
from ebpfnet.compile.policy.predicates import Predicate
from ebpfnet.compile.policy.statements import Stage, Statement
from ebpfnet.model.facts import Action, Policy


class Decision(NamedTuple):
    """A verdict and the id of what decided (key of ``names``). ``graceful``: of a deny, known connections are left."""

    verdict: Verdict
    rule: int
    graceful: bool = False


class Span(NamedTuple):
    """Ports ``first`` to ``last`` of a protocol have an answer of their own."""

    protocol: int
    first: int
    last: int
    decision: Decision


class Outcome(NamedTuple):
    """``spans`` are in order, do not overlap, and differ from ``base``; ICMP and all other ports get ``base``."""

    base: Decision
    spans: tuple[Span, ...] = ()


NOBODY_ASKED = Decision(Verdict.ALLOW, 0)
"""What no policy speaks of is allowed."""


class Isolation(NamedTuple):
    """What a subject gets that NetworkPolicies isolate in a direction, and none of their rules allows.

    ``names`` says for people whose it is: under its id, and, where that is too long, under those that follow it.
    """

    rule: int
    names: tuple[tuple[int, str], ...]
    graceful: bool

    @classmethod
    def by(cls, policies: Iterable[Policy], direction: abi.Direction, *, graceful: bool) -> Isolation:
        """Return the isolation by some policies; ``graceful`` is what counts for those that say nothing of it."""
        listed = sorted(policies, key=lambda policy: policy.ref)
        names = [f"{each.ref.namespace}/{each.ref.name}{' (refused)' if each.refused else ''}" for each in listed]
        word = direction.name.lower()
        kind = all(graceful if each.graceful is None else each.graceful for each in listed)
        rule = abi.identify(f"isolated {word} {' '.join(names)}")
        return cls(rule, tuple(_pieces(rule, word, names)), kind)


def _pieces(identity: int, word: str, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    while names:
        text, count = _isolated(word, names)
        yield identity, text
        identity, names = abi.continued(identity), names[count:]


def _isolated(word: str, names: Sequence[str]) -> tuple[str, int]:
    """As many names as there is room for, and how many more there are; and how many have room."""
    text = f"isolated for {word} by NetworkPolicy {names[0]}"
    for count, name in enumerate(names[1:], 1):
        more = f" and {len(names) - count} more"
        following = f"{text}, {name}"
        rest = f" and {len(names) - count - 1} more" if count + 1 < len(names) else ""
        if len((following + rest).encode()) >= abi.NAME_SIZE:
            return text + more, count
        text = following
    return text, len(names)


class View(NamedTuple):
    """Which policies count: all (``audited``), or those that are enforced; ``isolation`` None: none isolates.

    ``graceful`` is what counts for a policy that says nothing of it.
    """

    isolation: Isolation | None
    audited: bool
    graceful: bool


class _Layer(NamedTuple):
    """Statements of one stage: the first of ``limited`` that has the port, else ``general``."""

    limited: list[tuple[int, int, int, Statement]]
    general: Statement | None


def decide(
    statements: Sequence[Statement], relevant: frozenset[Predicate], enforced: View, full: View | None
) -> Outcome:
    """Return what statements about a peer, in order, come to; ``relevant`` is what he answers with yes.

    ``full`` None: nothing is audited. Else what is enforced decides, and where it allows what all would deny, that is
    told.
    """
    views = [enforced] if full is None else [enforced, full]
    layers = [layer for view in views for layer in _layers(statements, relevant, view)]

    def combine(*first: Statement | None) -> Decision:
        found = _decision(first[: len(Stage)], enforced)
        if full is None or found.verdict != Verdict.ALLOW:
            return found
        other = _decision(first[len(Stage) :], full)
        return Decision(Verdict.AUDIT, other.rule) if other.verdict == Verdict.DENY else found

    base = combine(*(layer.general for layer in layers))
    cuts: dict[int, set[int]] = {}
    for layer in layers:
        for protocol, first, last, _ in layer.limited:
            cuts.setdefault(protocol, set()).update((first, last + 1))
    spans: list[Span] = []
    for protocol in sorted(cuts):
        edges = sorted(cuts[protocol])
        pieces = zip(*(_paint(layer, protocol, edges) for layer in layers), strict=True)
        for first, after, piece in zip(edges, edges[1:], pieces, strict=False):
            decision = combine(*piece)
            if decision != base:
                _append(spans, Span(protocol, first, after - 1, decision))
    return Outcome(base, tuple(spans))


def deciding(statements: Iterable[Statement]) -> list[Statement]:
    """Return those of statements, that all speak of the same peers, which can be the first for some port, in order.

    The others are hidden for every peer alike: 250 policies that allow one port come to one of them.
    """
    ordered = sorted(statements, key=in_order)
    plain = _layers(ordered, frozenset(), View(None, audited=False, graceful=False))
    first = {id(layer.general) for layer in plain}
    for layer in plain:
        for protocol in {each[0] for each in layer.limited}:
            edges = sorted({edge for each in layer.limited if each[0] == protocol for edge in (each[1], each[2] + 1)})
            first.update(map(id, _paint(layer, protocol, edges)))

    def may_be_first(each: Statement) -> bool:
        general = plain[each.stage].general
        if each.audited or id(each) in first:
            return True
        named = any(reach.needs is not None for reach in each.ports or ())
        return named and (general is None or each.order < general.order)

    return [each for each in ordered if may_be_first(each)]


def in_order(statement: Statement) -> tuple[int, tuple[int, str, int]]:
    """Sort statements by who is asked first."""
    return statement.stage, statement.order


def _append(spans: list[Span], span: Span) -> None:
    """Add a span, to its neighbour if that says the same."""
    last = spans[-1] if spans else None
    if last and (last.protocol, last.last + 1, last.decision) == (span.protocol, span.first, span.decision):
        spans[-1] = last._replace(last=span.last)
    else:
        spans.append(span)


def _layers(statements: Sequence[Statement], relevant: frozenset[Predicate], view: View) -> list[_Layer]:
    """Return what speaks of a peer in each stage, up to what leaves nothing to those after it."""
    found: list[_Layer] = [_Layer([], None) for _ in Stage]
    for each in statements:
        layer = found[each.stage]
        if layer.general is not None or (each.audited and not view.audited):
            continue
        if each.ports is None:
            found[each.stage] = _Layer(layer.limited, each)
            continue
        for protocol, first, last, needs in each.ports:
            if needs is None or needs in relevant:
                layer.limited.append((protocol, first, last, each))
    return found


def _paint(layer: _Layer, protocol: int, edges: Sequence[int]) -> list[Statement | None]:
    """Return who is first for each piece between two edges."""
    pieces = [layer.general] * (len(edges) - 1)
    if not layer.limited:
        return pieces
    free = list(range(len(edges)))  # the next piece, from this on, that nobody has; a path to it that gets shorter
    for kind, first, last, statement in layer.limited:
        if kind != protocol:
            continue
        at, end = _next(free, bisect_left(edges, first)), bisect_left(edges, last + 1)
        while at < end:
            pieces[at] = statement
            free[at] = at + 1
            at = _next(free, at + 1)
    return pieces


def _next(free: list[int], at: int) -> int:
    while free[at] != at:
        free[at] = free[free[at]]
        at = free[at]
    return at


def _decision(first: Sequence[Statement | None], view: View) -> Decision:
    """Return what the first statement of each stage comes to."""
    admin, namespaced, baseline = first
    if admin is not None and admin.action != Action.PASS:
        return _by(admin, view)
    if (isolation := view.isolation) is not None:
        return _by(namespaced, view) if namespaced else Decision(Verdict.DENY, isolation.rule, isolation.graceful)
    if baseline is not None and baseline.action != Action.PASS:
        return _by(baseline, view)
    return NOBODY_ASKED


def _by(statement: Statement, view: View) -> Decision:
    if statement.action == Action.ACCEPT:
        return Decision(Verdict.ALLOW, statement.rule)
    return Decision(Verdict.DENY, statement.rule, view.graceful if statement.graceful is None else statement.graceful)
