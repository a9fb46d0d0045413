"""What is written on its own: it fails on its own, and is tried again on its own.

A unit is an endpoint set, by its id, or a table that is compared as a whole; those have ids from 0 down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ebpfnet.maps.table import TableError, TableFull
from ebpfnet.model.facts import Problem, Ref
from ebpfnet.reconcile.backlog import Backlog
from ebpfnet.reconcile.refusals import Refusals
from ebpfnet.reconcile.sets import DoesNotFit

log = logging.getLogger(__name__)

PODS, FRONTENDS, RANGES, BLOCKS, NODE, POLICIES = 0, -1, -2, -3, -4, -5
NAMES = {
    PODS: "pods of this node",
    FRONTENDS: "frontends of services",
    RANGES: "source ranges of services",
    BLOCKS: "address blocks",
    NODE: "this node",
    POLICIES: "policies",
}
ALL = 0  # as the only unit that drifts: all of it


class Units:
    """Attempts units and remembers which failed."""

    def __init__(self, clock: Callable[[], float], refusals: Refusals, owner: Callable[[int], Ref | None]) -> None:
        self.backlog = Backlog(clock)
        self.drift = Backlog(clock)
        """One unit, ALL: the tables may hold what nobody knows of, a resync will find it."""
        self.unfit: dict[int, None] = {}
        """Units that wait for room."""
        self.failures = 0
        self._refusals = refusals
        self._owner = owner

    def attempt(self, unit: int, work: Callable[[], None], *, whole: bool = True) -> bool:
        """Do a unit's work, or with ``whole`` unset a part of it; returns whether it was done. What fails waits."""
        try:
            work()
        except TableError as error:
            self.failed(unit, error)
            return False
        if whole and unit in self.backlog:
            self.backlog.drop(unit)
            self._name(unit, None)
        return True

    def failed(self, unit: int, error: TableError) -> None:
        """Note that a unit failed, and name it if it has no room."""
        first = self.backlog.add(unit)
        ref, text = self._owner(unit), error.strerror or str(error)
        full = isinstance(error, TableFull) and ref is not None
        self._name(unit, Problem(ref, "endpoints", text) if full and ref else None)
        if isinstance(error, DoesNotFit):  # computed before anything was written
            self.unfit[unit] = None
            return
        self.failures += 1
        if ALL not in self.drift:
            self.drift.add(ALL)
        log.log(logging.WARNING if first else logging.DEBUG, "%s: %s", ref or NAMES.get(unit, "a set"), text)

    def _name(self, unit: int, problem: Problem | None) -> None:
        self.unfit.pop(unit, None)
        self._refusals.does_not_fit(unit, problem)

    @property
    def all_fit(self) -> bool:
        """Whether nothing waits but for room."""
        return self.backlog.only(self.unfit.keys())
