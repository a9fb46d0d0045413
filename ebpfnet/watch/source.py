"""What every source of cluster state looks like."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from ebpfnet.model.facts import Change, Kind


class Deliver(Protocol):
    """Takes changes in."""

    def __call__(self, changes: list[Change], read_at: float = 0.0) -> None:
        """Take changes in order; ``read_at`` is when their events were read (``time.perf_counter()``), 0 for a list."""


@dataclass(slots=True)
class Stats:
    """What became of one thing that is followed, for metrics and ``ebpfnet status``; times are ``time.time()``.

    ``lists`` counts how often everything was read, ``watches`` how often changes were asked for, ``failures`` what went
    wrong; ``lag_s`` is how long the last change took to come here (None: not known), ``problem`` what is wrong now.
    """

    resource: str
    state: str = "starting"
    lists: int = 0
    watches: int = 0
    events: int = 0
    failures: int = 0
    objects: int = 0
    heard_at: float = 0.0
    lag_s: float | None = None
    problem: str = ""


HIDES = frozenset((Kind.FILE, Kind.SERVICE, Kind.SERVICE_CIDR, Kind.ENDPOINT_SLICE, Kind.POD))
"""Kinds that the tables may hold something of: refused at first, it is not known what they had there before."""


class Source(Protocol):
    """A stream of changes: everything there is, one ``Synced``, then what changes.

    That ``Synced`` is not complete when an object or a file was refused that was never read well: what it had in the
    tables before is not known. Another ``Synced`` follows when nothing is refused that way.
    """

    @property
    def stats(self) -> Sequence[Stats]:
        """What is followed, and how that goes."""

    def want(self, kinds: Collection[Kind]) -> None:
        """Say what is needed of other nodes: ``PEER``, their pods, ``NODE``, themselves. The rest may be left out.

        A source that does so says ``PeersKnown``. To be called at any time, by ``deliver`` too: it only takes a note.
        """

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver changes until ``stop`` is set: of one object in order, maybe from several threads."""
