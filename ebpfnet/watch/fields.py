"""Fields that several kinds have: each is parsed, or refused with its path and what is wrong with it."""

from __future__ import annotations

import ipaddress

from ebpfnet import abi
from ebpfnet.model.facts import IPAddress, IPNetwork

PROTOCOLS = {"TCP": abi.Protocol.TCP, "UDP": abi.Protocol.UDP, "SCTP": abi.Protocol.SCTP}


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
