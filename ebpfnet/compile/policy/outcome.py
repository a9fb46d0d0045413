"""What is decided for peers of a class: one answer for everything, and others for ranges of ports."""

from __future__ import annotations

from typing import NamedTuple

from ebpfnet.abi import Verdict


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
