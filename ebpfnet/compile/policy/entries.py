"""Outcomes to entries of ``rules`` and ``rule_ports``: ranges of ports become prefixes of port numbers."""

from __future__ import annotations

import functools
import struct

from ebpfnet import abi
from ebpfnet.compile.policy.outcome import Decision, Outcome

PORT_BITS = 16
_PORTS = struct.Struct("Q")  # ``ports``, the first field of ``abi.PortRange``


@functools.lru_cache(4096)
def prefixes(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Return ports ``first`` to ``last`` as prefixes: port and length, the fewest there are, in order."""
    found = []
    while first <= last:
        size = min(first & -first or 1 << PORT_BITS, 1 << ((last - first + 1).bit_length() - 1))
        found.append((first, PORT_BITS + 1 - size.bit_length()))
        first += size
    return tuple(found)


@functools.lru_cache(4096)
def _ranges(protocol: int, first: int, last: int) -> tuple[int, tuple[bytes, ...]]:
    """Return the lengths of a range's prefixes as bits, and what keys of ``rule_ports`` say of them."""
    found = prefixes(first, last)
    keys = (abi.PortRange(0, port, length, protocol).pack() for port, length in found)
    return sum({1 << length for _, length in found}), tuple(key[_PORTS.size :] for key in keys)


def rule_entries(outcome: Outcome) -> tuple[bytes, dict[bytes, bytes]]:
    """Return a value of ``rules``, and the entries of ``rule_ports`` that it leads to."""
    if not outcome.spans:
        return _rule(outcome.base), {}
    ports = abi.identify(f"ports {' '.join(map(_canonical, outcome.spans))}")
    start, lengths, found = _PORTS.pack(ports), 0, {}
    for protocol, first, last, decision in outcome.spans:
        value = _rule(decision)
        bits, keys = _ranges(protocol, first, last)
        lengths |= bits
        for key in keys:
            found[start + key] = value
    return _rule(outcome.base, ports, lengths), found


def _canonical(span: tuple[int, int, int, Decision]) -> str:
    protocol, first, last, (verdict, rule, graceful) = span
    return f"{protocol}:{first}-{last}={int(verdict)}{'g' if graceful else ''}/{rule:x}"


def _rule(decision: Decision, ports: int = 0, lengths: int = 0) -> bytes:
    """``abi.Rule(...).pack()``, several times faster: a subject may have 12,500 of them."""
    verdict, rule, graceful = decision
    return abi.Rule.layout.pack(rule, ports, lengths, verdict, abi.RuleFlag.GRACEFUL.value if graceful else 0)
