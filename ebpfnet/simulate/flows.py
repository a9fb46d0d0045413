"""A line of the input: what a person asks about one connection."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ebpfnet import abi
from ebpfnet.watch.words import explain

PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP")


class BadFlow(ValueError):
    """A flow that can't be simulated; the text names the field."""


class Flow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "destination": "to"}):
    """One connection: who, to where, and how often. ``node`` is where a client that is no pod enters."""

    source: str
    destination: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | str | None = None
    protocol: str = "TCP"
    node: str | None = None
    samples: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1

    def number(self, *, ipv6: bool) -> int:
        """Return the IP protocol's number."""
        if self.protocol == "ICMP" and ipv6:
            return abi.Protocol.ICMPV6
        return abi.Protocol[self.protocol]


def _spelled(flow: Flow) -> Flow:
    """Return the flow as it is meant: `tcp` is TCP, and "80" is port 80 (a port's name has a letter)."""
    if flow.protocol not in PROTOCOLS:
        flow = msgspec.structs.replace(flow, protocol=flow.protocol.upper())
    if isinstance(flow.port, str) and flow.port.isascii() and flow.port.isdigit():
        number = int(flow.port[:6])
        if not 1 <= number <= 65535:
            raise BadFlow(f"port: {flow.port} is not a port (1 to 65535)")
        flow = msgspec.structs.replace(flow, port=number)
    return flow


def parse(line: Any) -> Flow:
    """Return the flow that a decoded JSON object says; raises ``BadFlow``."""
    try:
        flow = msgspec.convert(line, Flow)
    except msgspec.ValidationError as error:
        raise BadFlow(": ".join(part for part in explain(str(error)) if part)) from error
    flow = _spelled(flow)
    if flow.protocol not in PROTOCOLS:
        raise BadFlow(f"protocol: {line['protocol']!r} is none of {', '.join(PROTOCOLS)}")
    if flow.port is None and flow.protocol != "ICMP":
        raise BadFlow(f"port: {flow.protocol} needs one")
    return flow
