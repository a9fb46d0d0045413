"""What rules decided, as the datapath counted it, and whose rules they are; every CPU counts for itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.maps.percpu import totals
from ebpfnet.maps.table import Table

_POLICY = re.compile(r"(NetworkPolicy|ClusterNetworkPolicy) (\S+?)(?: \((Admin|Baseline)\))?, ")
_ISOLATED = re.compile(r"isolated for (ingress|egress) by NetworkPolicy (.*)")
_PATH = re.compile(r"(ingress|egress)\[\d+\]")
_MORE = re.compile(r" and \d+ more$")


class Hit(NamedTuple):
    """How often a rule decided: connections that it let pass or that it would have dropped, and dropped packets."""

    rule: int
    allowed: int
    denied: int
    audited: int


def hits(table: Table) -> Iterator[Hit]:
    """Yield what table ``rule_hits`` holds; raises ``TableError``."""
    for key, value in table.items():
        yield Hit(int.from_bytes(key, "little"), *totals(value, abi.Hits))


def policies_of(name: str) -> tuple[str, ...]:
    """Return the policies that a rule's name in ``names`` speaks of, as ``KIND [NAMESPACE/]NAME``.

    One, or for what drops because nothing allows it those that isolate the pod, as far as there was room for them
    (``policies_by``: all). (): it is no rule's name.
    """
    found = _POLICY.match(name)
    if found:
        return (f"{found[1]} {found[2]}",)
    isolated = _ISOLATED.fullmatch(name)
    if not isolated:
        return ()
    listed = _MORE.sub("", isolated[2]).rstrip("…").split(", ")
    return tuple(f"NetworkPolicy {each.removesuffix(' (refused)')}" for each in listed)


def pieces(rule: int, name_of: Callable[[int], str]) -> Iterator[tuple[int, str]]:
    """Yield a rule's name and, where it goes on under other ids, the rest, each with its id."""
    while name := name_of(rule):
        yield rule, name
        if not _MORE.search(name) or not _ISOLATED.fullmatch(name):
            return
        rule = abi.continued(rule)


def policies_by(rule: int, name_of: Callable[[int], str]) -> tuple[str, ...]:
    """Return all policies that a rule is of: ``policies_of`` over everything that ``names`` says of it."""
    return tuple(each for _, name in pieces(rule, name_of) for each in policies_of(name))


def rule_of(name: str) -> str:
    """Return where a rule is in its policy, by its name: ``ingress[0]``; empty: it is no rule's name."""
    found = _POLICY.match(name)
    path = _PATH.match(name[found.end() :].removeprefix("refused: ")) if found else None
    return path[0] if path else ""


def direction_of(name: str) -> str:
    """Return ``ingress`` or ``egress``, what a rule's name speaks of; empty: it is no rule's name."""
    isolated = _ISOLATED.fullmatch(name)
    if isolated:
        return isolated[1]
    return rule_of(name).partition("[")[0]


def by_policy(found: Iterable[Hit], name_of: Callable[[int], str]) -> dict[str, Hit]:
    """Return the sums of each policy; ``name_of`` asks ``names``. What several isolate is counted for each."""
    sums: dict[str, Hit] = {}
    for each in found:
        for policy in policies_by(each.rule, name_of):
            before = sums.get(policy, Hit(0, 0, 0, 0))
            sums[policy] = Hit(0, *(one + more for one, more in zip(before[1:], each[1:], strict=True)))
    return sums
