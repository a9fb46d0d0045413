"""What the agent is asked for when metrics are read: plain facts, taken at that moment and at no other.

Nothing here is counted on a hot path. The kernel counts packets, the reconciler knows its problems; whoever joins the
rooms fills a ``Snapshot`` from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class TableUse(NamedTuple):
    """A table in the kernel: how many of ``capacity`` entries are taken; None: not known without walking it."""

    table: str
    entries: int | None
    capacity: int


class Packets(NamedTuple):
    """Packets since the programs were loaded: ``what`` is an outcome or a drop reason, in lower case."""

    hook: str
    what: str
    packets: int


class Traffic(NamedTuple):
    """What went through a service (NAMESPACE/NAME:PORT), and back."""

    service: str
    connections: int
    packets: int
    bytes: int


class Decided(NamedTuple):
    """How often a policy ("KIND [NAMESPACE/]NAME") decided: connections allowed or audited, packets denied."""

    policy: str
    verdict: str
    times: int


class Conntrack(NamedTuple):
    """The flow table as the last sweep left it, and all sweeps since the start; ``duration_s`` is the last one's."""

    entries: int
    sweeps: int
    removed: int
    duration_s: float
    ended: int = 0
    """Entries marked, so that the next packet ends their connections."""


class Watch(NamedTuple):
    """The watch of one resource ("services"): seconds behind, and how often it began anew, listed anew and failed.

    ``lag_s`` is None while it is not known.
    """

    resource: str
    lag_s: float | None
    restarts: int
    relists: int
    errors: int


class Attached(NamedTuple):
    """How many interfaces of a kind ("pod", "uplink", "loopback") are in a state ("attached", "failed")."""

    kind: str
    state: str
    interfaces: int


class Refusal(NamedTuple):
    """An object that is refused now: its kind, and the field's path with indexes and all."""

    kind: str
    field: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The agent at one moment."""

    tables: tuple[TableUse, ...] = ()
    forwarded: tuple[Packets, ...] = ()
    dropped: tuple[Packets, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    audited: tuple[Packets, ...] = ()
    """What went on, and would have been dropped."""
    decided: tuple[Decided, ...] = ()
    conntrack: Conntrack | None = None
    watches: tuple[Watch, ...] = ()
    attached: tuple[Attached, ...] = ()
    refused: tuple[Refusal, ...] = ()
    pending_units: int = 0
    """Units of work that are not in the kernel as they should be."""
    pending_services: int = 0
    pending_endpoints: int = 0
    """Changes that were taken in and are not written yet."""
    events_dropped: int = 0
    """Kubernetes Events that the rate limit held back."""
