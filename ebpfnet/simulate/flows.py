"""A line of the input: what a person asks about one connection."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ebpfnet import abi

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


def parse(line: Any) -> Flow:
    """Return the flow that a decoded JSON object says; raises ``BadFlow``."""
    try:
        flow = msgspec.convert(line, Flow)
    except msgspec.ValidationError as error:
        raise BadFlow(str(error).replace("`source`", "`from`").replace("`destination`", "`to`")) from error
    if flow.protocol not in PROTOCOLS:
        raise BadFlow(f"protocol: {flow.protocol!r} is none of {', '.join(PROTOCOLS)}")
    if flow.port is None and flow.protocol != "ICMP":
        raise BadFlow(f"port: {flow.protocol} needs one")
    return flow
