"""Facts as plain values, which JSON can say, and back: for who asks an agent what it knows.

Records, numbers of an enumeration, addresses and bytes are a list that begins with what it is; only what is named here
is ever made.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from collections.abc import Callable
from typing import Any

from ebpfnet.model import facts
from ebpfnet.model.labels import Requirement, Selector
from ebpfnet.model.peers import Likeness

_RECORDS: tuple[type[Any], ...] = (
    facts.Ref,
    facts.Node,
    facts.Namespace,
    facts.Pod,
    facts.PodPort,
    facts.PodPeer,
    facts.IPBlock,
    facts.NodePeer,
    facts.PolicyPort,
    facts.PolicyRule,
    facts.ClusterRule,
    facts.NetworkPolicy,
    facts.ClusterNetworkPolicy,
    Requirement,
    Selector,
    Likeness,
)
_MAKE: dict[str, Callable[..., Any]] = {
    **{each.__name__: each for each in _RECORDS},
    "Kind": facts.Kind,
    "Tier": facts.Tier,
    "Action": facts.Action,
    "address": ipaddress.ip_address,
    "network": ipaddress.ip_network,
    "bytes": bytes.fromhex,
    "set": lambda *values: frozenset(values),
    "tuple": lambda *values: tuple(values),
}


def to_plain(value: Any) -> Any:
    """Return a fact as JSON has it; raises ``TypeError`` for what no fact holds."""
    match value:
        case None | bool():
            return value
        case enum.Enum() if type(value).__name__ in _MAKE:
            return [type(value).__name__, value.value]
        case str() | int():
            return value
        case bytes():
            return ["bytes", value.hex()]
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            return ["address", str(value)]
        case ipaddress.IPv4Network() | ipaddress.IPv6Network():
            return ["network", str(value)]
        case frozenset():
            return ["set", *sorted(map(to_plain, value))]
        case tuple():
            name = type(value).__name__ if isinstance(value, _RECORDS) else "tuple"
            return [name, *map(to_plain, value)]
        case _ if isinstance(value, _RECORDS):
            fields = (getattr(value, field.name) for field in dataclasses.fields(value))
            return [type(value).__name__, *map(to_plain, fields)]
    raise TypeError(f"{type(value).__name__} is no fact")


def from_plain(value: Any) -> Any:
    """Return what ``to_plain`` was given; raises ``ValueError`` for what it never returns."""
    if not isinstance(value, list):
        return value
    head = value[0] if value else None
    make = _MAKE.get(head) if isinstance(head, str) else None
    if make is None:
        raise ValueError(f"{head!r} is no fact")
    try:
        return make(*map(from_plain, value[1:]))
    except TypeError as error:
        raise ValueError(f"{head}: {error}") from error
