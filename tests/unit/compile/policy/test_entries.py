"""Outcomes to entries: ranges of ports as prefixes, and what they share."""

from __future__ import annotations

import random

import pytest

from ebpfnet import abi
from ebpfnet.compile.policy.entries import prefixes, rule_entries
from ebpfnet.compile.policy.outcome import Decision, Outcome, Span
from tests.policy_verdicts import look_up

DENY, ALLOW = Decision(abi.Verdict.DENY, 7, graceful=True), Decision(abi.Verdict.ALLOW, 8)
PORTS = range(65536)


def covered(first: int, last: int) -> list[int]:
    return [port + more for port, length in prefixes(first, last) for more in range(1 << (16 - length))]


@pytest.mark.parametrize(
    ("first", "last", "want"),
    [
        (80, 80, ((80, 16),)),
        (0, 65535, ((0, 0),)),
        (0, 0, ((0, 16),)),
        (65535, 65535, ((65535, 16),)),
        (32768, 65535, ((32768, 1),)),
        (80, 83, ((80, 14),)),
        (79, 84, ((79, 16), (80, 14), (84, 16))),
    ],
)
def test_prefixes(first: int, last: int, want: tuple[tuple[int, int], ...]):
    assert prefixes(first, last) == want


def test_prefixes_of_any_range_are_that_range():
    dice = random.Random(1)
    for _ in range(300):
        first, last = sorted((dice.choice(PORTS), dice.choice(PORTS)))
        assert covered(first, last) == list(range(first, last + 1))
    for first in range(40):
        for last in range(first, 70):
            assert covered(first, last) == list(range(first, last + 1))


def test_a_range_is_30_prefixes_at_most():
    assert len(prefixes(1, 65534)) == 30


def test_the_same_answer_for_everything_is_one_entry():
    assert rule_entries(Outcome(DENY)) == (abi.Rule(7, 0, 0, abi.Verdict.DENY, abi.RuleFlag.GRACEFUL).pack(), {})


def test_a_port():
    value, entries = rule_entries(Outcome(DENY, (Span(6, 80, 80, ALLOW),)))
    rule = abi.Rule.unpack(value)
    assert (rule.id, rule.verdict, rule.lengths) == (7, abi.Verdict.DENY, 1 << 16)
    assert entries == {abi.PortRange(rule.ports, 80, 16, 6).pack(): abi.Rule(8, 0, 0, abi.Verdict.ALLOW).pack()}


def test_every_port_of_every_protocol_is_found():
    dice = random.Random(2)
    for _ in range(4):
        spans: list[Span] = []
        want: dict[tuple[int, int], int] = {}
        for protocol in (6, 17, 132):
            edges = sorted(dice.sample(PORTS, 12))
            for index, (first, last) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
                decision = Decision(abi.Verdict.ALLOW, 100 + index)
                spans.append(Span(protocol, first, last, decision))
                want |= dict.fromkeys(((protocol, port) for port in range(first, last + 1)), decision.rule)
        value, entries = rule_entries(Outcome(DENY, tuple(spans)))
        rule = abi.Rule.unpack(value)
        asked = [port for span in spans for port in (span.first - 1, span.first, span.last, span.last + 1)]
        asked += dice.sample(PORTS, 500)
        for protocol in (6, 17, 132):
            for port in (port for port in asked if port in PORTS):
                assert look_up(rule, entries, protocol, port).id == want.get((protocol, port), 7)
        assert look_up(rule, entries, 1, 0).id == 7


def test_equal_ranges_are_shared_whatever_the_base():
    span = Span(6, 80, 80, ALLOW)
    one, two = rule_entries(Outcome(DENY, (span,))), rule_entries(Outcome(DENY._replace(rule=9), (span,)))
    assert one[0] != two[0]
    assert one[1] == two[1]


@pytest.mark.parametrize(
    "other",
    [
        Span(17, 80, 80, ALLOW),
        Span(6, 80, 81, ALLOW),
        Span(6, 80, 80, ALLOW._replace(rule=9)),
        Span(6, 80, 80, Decision(abi.Verdict.AUDIT, 8)),
        Span(6, 80, 80, ALLOW._replace(graceful=True)),
    ],
)
def test_ranges_that_differ_in_anything_are_apart(other: Span):
    one, two = (abi.Rule.unpack(rule_entries(Outcome(DENY, (span,)))[0]) for span in (Span(6, 80, 80, ALLOW), other))
    assert one.ports != two.ports


def test_numbers_stay_what_they_are():
    """They are in the tables of a node whose agent is replaced."""
    rule = abi.Rule.unpack(rule_entries(Outcome(DENY, (Span(6, 80, 90, ALLOW),)))[0])
    assert rule.ports == abi.identify("ports 6:80-90=1/8")
