"""What every source of cluster state looks like."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ebpfnet.model.facts import Change

Deliver = Callable[[list[Change]], None]


class Source(Protocol):
    """A stream of changes: everything there is, one ``Synced``, then what changes."""

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver changes, in order and from this thread alone, until ``stop`` is set."""
