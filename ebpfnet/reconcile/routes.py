"""Where packets to services go at this moment: what flows are judged by."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from ebpfnet.abi import Mark
from ebpfnet.reconcile.backlog import Backlog
from ebpfnet.reconcile.diff import find
from ebpfnet.reconcile.frontends import sets_of

if TYPE_CHECKING:
    from ebpfnet.reconcile.services import ServiceTables

SET_SIZE = 8  # bytes of an id


class Fate(enum.IntEnum):
    """What a backend is to a frontend, from the best to the worst."""

    CHOSEN = 0
    """New connections may go there, or that is not known at this moment."""
    SERVING = 1
    """Its slice says that it serves, and the service takes others: it terminates, or is too far away."""
    LISTED = 2
    """A slice of the service knows it, and it does not serve."""
    GONE = 3
    """It is in no slice of the service."""
    NO_SERVICE = 4
    """There is no such frontend."""


class Routes:
    """Frontends, endpoint sets and what slices say of backends."""

    def __init__(self, services: ServiceTables, failing: Backlog) -> None:
        self.turns = 0
        """Counts slices that say something else of an endpoint."""
        self._services = services
        self._failing = failing

    def is_frontend(self, frontend: bytes) -> bool:
        """Say whether packets to a packed ``Frontend`` are translated."""
        return self._services.frontends.resolve(frontend) is not None

    def fate(self, frontend: bytes, backend: bytes) -> Fate:
        """Say what a packed ``Backend`` is to a packed ``Frontend``, or to the endpoint set of a packed id."""
        if len(frontend) == SET_SIZE:
            return self._in_set(int.from_bytes(frontend, "little"), backend)
        # A node port of another node, too: that one may send on to a backend here what it was sent.
        found = self._services.frontends.resolve(frontend, Mark.NODEPORTS | Mark.NODE)
        if found is None:
            return Fate.NO_SERVICE
        return min((self._in_set(set_id, backend) for set_id in sets_of(found)), default=Fate.NO_SERVICE)

    def _in_set(self, set_id: int, backend: bytes) -> Fate:
        live, group = self._services.live(set_id), self._services.group(set_id)
        if live is None or group is None or set_id in self._failing or find(live.run, backend) >= 0:
            return Fate.CHOSEN
        groups = self._services.groups
        if groups.serves(group, backend):
            return Fate.SERVING
        return Fate.LISTED if groups.lists(group, backend) else Fate.GONE
