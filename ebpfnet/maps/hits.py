"""What rules decided, as the datapath counted it, and whose rules they are; every CPU counts for itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.maps.percpu import totals
from ebpfnet.maps.table import Table

_POLICY = re.compile(r"(NetworkPolicy|ClusterNetworkPolicy) (\S+?)(?: \((Admin|Baseline)\))?, ")
_ISOLATED = re.compile(r"isolated for (ingress|egress) by NetworkPolicy (.*)")
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

    One, or for what drops because nothing allows it all that isolate the pod, as far as there was room for them. ():
    it is no rule's name.
    """
    found = _POLICY.match(name)
    if found:
        return (f"{found[1]} {found[2]}",)
    isolated = _ISOLATED.fullmatch(name)
    if not isolated:
        return ()
    listed = _MORE.sub("", isolated[2]).rstrip("…").split(", ")
    return tuple(f"NetworkPolicy {each.removesuffix(' (refused)')}" for each in listed)


def direction_of(name: str) -> str:
    """Return ``ingress`` or ``egress``, what a rule's name speaks of; empty: it is no rule's name."""
    isolated = _ISOLATED.fullmatch(name)
    if isolated:
        return isolated[1]
    found = _POLICY.match(name)
    words = name[found.end() :].removeprefix("refused: ") if found else ""
    return words.split("[", 1)[0]


def by_policy(found: Iterable[Hit], names: Mapping[int, str]) -> dict[str, Hit]:
    """Return the sums of each policy; ``names`` is what ``names`` holds. What several isolate is counted for each."""
    sums: dict[str, Hit] = {}
    for each in found:
        for policy in policies_of(names.get(each.rule, "")):
            before = sums.get(policy, Hit(0, 0, 0, 0))
            sums[policy] = Hit(0, *(one + more for one, more in zip(before[1:], each[1:], strict=True)))
    return sums
