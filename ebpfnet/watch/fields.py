"""Fields that several kinds have: each is parsed, or refused with its path and what is wrong with it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.model.facts import Fact, IPAddress, IPNetwork, Problem, Ref
from ebpfnet.model.labels import Labels
from ebpfnet.watch import schema

BROADCAST = ipaddress.IPv4Address("255.255.255.255")
OURS = "ebpfnet.io/"
PROTOCOLS = {"TCP": abi.Protocol.TCP, "UDP": abi.Protocol.UDP, "SCTP": abi.Protocol.SCTP}


class Decoded(NamedTuple):
    """What became of an object: a fact or None, and what was wrong with it. Neither: a kind that is not followed.

    ``since`` is when its change was caused (seconds since the epoch), 0 where the object does not say.
    """

    ref: Ref | None
    fact: Fact | None
    problems: tuple[Problem, ...] = ()
    since: float = 0.0


class BadField(Exception):
    """A field that makes the object useless."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def parse_address(text: object, field: str) -> IPAddress:
    """Return an address; raises ``BadField`` for what is none, leading zeros included (CVE-2021-29923)."""
    try:
        address = ipaddress.ip_address(text) if isinstance(text, str) else None
    except ValueError:
        address = None
    if address is None:
        raise BadField(field, f"{text!r} is not an IP address")
    if address.version == 6 and (address.ipv4_mapped or address.scope_id):
        raise BadField(field, f"{text!r} is an IPv4-mapped or scoped address")
    return address


def parse_network(text: str, field: str) -> IPNetwork:
    """Return a block ``ADDRESS/LENGTH``, bits beyond the length cleared as the API does; raises ``BadField``."""
    address, _, length = text.partition("/")
    try:
        if not (length.isascii() and length.isdigit()):
            raise ValueError
        network = ipaddress.ip_network((parse_address(address, field), int(length)), strict=False)
    except ValueError:
        raise BadField(field, f"{text!r} is not a block of addresses (10.0.0.0/8, fd00::/8)") from None
    return network


def parse_protocol(text: str | None, field: str) -> int:
    """Return a protocol's number, TCP's when none is named; raises ``BadField``."""
    number = PROTOCOLS.get(text or "TCP")
    if number is None:
        raise BadField(field, f"{text!r} is not TCP, UDP or SCTP")
    return number


def parse_port(number: int, field: str) -> int:
    """Return a port; raises ``BadField``."""
    if not 1 <= number <= 65535:
        raise BadField(field, f"{number} is not a port (1 to 65535)")
    return number


def unusable(address: IPAddress) -> str | None:
    """Say why traffic can't be sent to an address, or None (the API forbids the same for endpoints)."""
    for reason in ("loopback", "link_local", "multicast", "unspecified"):
        if getattr(address, f"is_{reason}"):
            return f"{reason.replace('_', '-')}"
    return "broadcast" if address == BROADCAST else None


def labels_of(meta: schema.Meta | schema.PeerMeta) -> Labels:
    """Return an object's labels in one order."""
    return tuple(sorted((meta.labels or {}).items()))


def annotation(key: str) -> str:
    """Return the path of an annotation."""
    return f"metadata.annotations[{key}]"


def unknown_annotations(ref: Ref, given: Mapping[str, object], *known: str) -> Iterator[Problem]:
    """Name what begins with our name and is none of the annotations that this kind has."""
    for key in sorted(given):
        if key.startswith(OURS) and key not in known:
            yield Problem(ref, annotation(key), f"there is no such annotation; did you mean {' or '.join(known)}?")
