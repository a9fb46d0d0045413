"""What a rule that decided about a packet stands for: whom it was asked about, which entry of its peers means him."""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Direction
from ebpfnet.maps.judge import judge
from ebpfnet.simulate.world import Node

NOTHING: dict[str, Any] = {"matched": None, "also": [], "nearest": []}


class Told(NamedTuple):
    """The other end's address, and the citation as it is printed."""

    peer: bytes
    citation: dict[str, Any]


def cited(node: Node, direction: Direction, rule: int, before: bytes, after: bytes) -> Told:
    """Say for what a rule decided; ``before`` and ``after`` are tuples of the packet as a program got and left it.

    What was dropped on its way to a service was not translated: the first backend is meant that the rule decides about.
    """
    tables, source, protocol = node.equipment.tables, before[:16], after[36]
    egress = direction == Direction.EGRESS
    for destination, port in _ends(node, before, after):
        found = judge(tables, source, destination, protocol, port, direction)
        if found.rule == rule:
            said = node.reconciler.policies.regimes.cite(found.group, direction, found.peers, rule, protocol, port)
            return Told(destination if egress else source, said.document() if said else NOTHING)
    return Told(after[16:32] if egress else source, NOTHING)


def _ends(node: Node, before: bytes, after: bytes) -> list[tuple[bytes, int]]:
    """Return whom a packet may have been for."""
    if before[16:36] == after[16:36]:
        frontends = (node.frontend(before, arrives=arrives) for arrives in (False, True))
        backends = [_end(backend) for found in frontends if found for backend in found.backends]
        if backends:
            return backends
    return [(after[16:32], int.from_bytes(after[34:36], "big"))]


def _end(text: str) -> tuple[bytes, int]:
    address, _, port = text.rpartition(":")
    return abi.pack_address(ipaddress.ip_address(address.strip("[]"))), int(port)
