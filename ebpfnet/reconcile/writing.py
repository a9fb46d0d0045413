"""What goes out: units that are dirty, in the order that keeps every moment valid; again what failed, or had no room.

A unit (an endpoint set, or a table that is compared as a whole) that fails is read back and tried again with growing
patience, and never holds up another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from ebpfnet.compile.pods import Wires
from ebpfnet.maps.table import Table, TableError
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.host import Host
from ebpfnet.reconcile import readback, resync
from ebpfnet.reconcile.place import PlaceTables
from ebpfnet.reconcile.pods import PodTables
from ebpfnet.reconcile.policy.policies import Policies
from ebpfnet.reconcile.refusals import Refusals
from ebpfnet.reconcile.routes import Routes
from ebpfnet.reconcile.services import ServiceTables
from ebpfnet.reconcile.units import ALL, FRONTENDS, PODS, POLICIES, RANGES, Units

log = logging.getLogger(__name__)


class Writing:
    """All tables of a node, what of them is dirty, and the work on it."""

    def __init__(
        self,
        tables: Mapping[str, Table],
        node: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        graceful: bool = False,
    ) -> None:
        """``graceful``: connections that a policy forbids, and which does not say what becomes of them, are left."""
        self.cluster = Cluster(node)
        self.host = Host()
        self.synced = False
        """Whether the tables were read back and brought in line after the first full list."""
        self._tables = tables
        self._services = ServiceTables(tables, node)
        self.policies = Policies(tables, self.cluster, clock, graceful=graceful)
        self._pods = PodTables(tables, self.policies.group)
        self._place = PlaceTables(tables)
        self._wires = Wires()
        self._dirty: dict[int, None] = {}
        self._complete = False  # whether what nobody knows of is nobody's
        self._refusals = Refusals()
        self._clock = clock
        self._units = Units(clock, self._refusals, self._services.owner)
        self._pods_are_dirty = False
        self._knows = False  # whether what policies mean is all known
        self._routes = Routes(self._services, self._units.backlog)
        self._room = 0

    def sync(self) -> None:
        """Read the tables back and write every difference: once, before anything else is written."""
        whole = self._tidy(self._read_back)
        if self.synced:
            self.flush()
            whole &= self._tidy(self._check_names)
        if not whole:
            self._units.drift.add(ALL)

    def _read_back(self) -> None:
        keep = not self._complete
        found = self._services.read_back(keep=keep)
        self._place.read_back(keep=keep)
        self.policies.read_back(keep=keep or not self.cluster.peers_known)
        self._dirty = dict.fromkeys((*self._services.wanted(), PODS))
        self._units.backlog.clear()
        self._pods.forget()
        self.synced = True
        if self._complete:
            self._services.remove_strays(found)

    @staticmethod
    def _tidy(work: Callable[[], None]) -> bool:
        try:
            work()
        except TableError as error:
            log.warning("sync: %s", error.strerror or error)
            return False
        return True

    def _check_names(self) -> None:
        want = self._services.names() | self._names()
        readback.put_right(self._tables["names"], want, remove=self._complete)

    def _names(self) -> dict[int, str]:
        """Return the names of all but endpoint sets."""
        return {**self.policies.names, **self._pods.named}

    def flush(self) -> None:
        """Write every unit that is dirty: what is led to before what leads there, and what goes last."""
        self.policies.prepare()
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            backlog = self._units.backlog
            self._create([unit for unit in dirty if unit not in backlog])
            for unit in dirty:
                if unit in backlog:
                    backlog.hurry(unit)
                elif unit > PODS and self._services.owner(unit) is not None:
                    self._units.attempt(unit, self._work(unit))
            if PODS in dirty:
                self._pods_are_dirty = True
        self._write_policies()
        self._lead()
        self._use_room()
        self._retry_due()

    def _lead(self) -> None:
        """Write what leads to endpoint sets, and remove what nothing leads to any more."""
        services, attempt = self._services, self._units.attempt
        if not services.ranges.settled:
            attempt(RANGES, lambda: self._write_ranges(delete=False))
        if not services.frontends.settled:
            attempt(FRONTENDS, self._write_frontends)
        for set_id in services.leaving():
            if set_id not in self._units.backlog:
                attempt(set_id, lambda set_id=set_id: services.settle(set_id))  # type: ignore[misc]
        for set_id in services.unasked() if FRONTENDS not in self._units.backlog else ():
            attempt(set_id, lambda set_id=set_id: services.dismiss(set_id), whole=False)  # type: ignore[misc]
        if not services.ranges.settled and FRONTENDS not in self._units.backlog:
            attempt(RANGES, self._write_ranges)
        for unit, table in self._place.tables.items():
            if not table.settled:
                attempt(unit, table.write)

    def _write_policies(self) -> None:
        """Bring policies in line, and the pods that they speak of."""
        if POLICIES in self._units.backlog:
            self._units.backlog.hurry(POLICIES)
        else:
            self._units.attempt(POLICIES, self._settle_policies)
        if self._pods_are_dirty:
            self._units.attempt(PODS, self._settle_pods)

    def _settle_policies(self) -> None:
        before = self.policies.problems
        try:
            self.policies.write(self._pods.look(), self._flip_pods)
        finally:
            self._refusals.told += self.policies.problems != before

    @property
    def _tidy_at(self) -> float | None:
        """When to remove what policies left behind; None: there is nothing, or something else comes first."""
        return self.policies.tidy_at if POLICIES not in self._units.backlog else None

    def _tidy_policies(self) -> None:
        self.policies.tidy(self._pods.look(), self._flip_pods)

    def _flip_pods(self) -> Mapping[bytes, bytes]:
        self._settle_pods()
        return self._pods.look()

    def _write_frontends(self) -> None:
        before = self._services.frontends.full()
        try:
            self._services.frontends.write()
        finally:
            self._refusals.told += self._services.frontends.full() != before

    def _write_ranges(self, *, delete: bool = True) -> None:
        before = self._services.shut_out()
        try:
            self._services.ranges.write(delete=delete)
        finally:
            self._refusals.told += self._services.shut_out() != before

    def _work(self, unit: int, *, again: bool = False) -> Callable[[], None]:
        if unit == PODS:
            return self._settle_pods
        if unit == POLICIES:
            return self._settle_policies
        if unit == FRONTENDS:
            return self._write_frontends
        if unit == RANGES:
            return self._write_ranges
        if unit < PODS:
            return self._place.tables[unit].write
        broken = again and unit not in self._units.unfit  # what did not fit was not begun: its state is known
        return lambda: (self._services.restore if broken else self._services.settle)(unit)

    def _create(self, units: Iterable[int]) -> None:
        """Write sets that are new in a few batches; what does not fit is left to ``settle``, which says so."""
        fresh = self._services.fitting(units)
        try:
            self._services.create(fresh)
        except TableError as error:
            for each in fresh:
                self._units.failed(each.id, error)

    def _use_room(self) -> None:
        """When something was removed, let what did not fit try again: in order, until one still does not."""
        unfit = self._units.unfit
        while unfit:
            made_way = [unit for unit in unfit if unit > PODS and self._make_way(unit)]
            if made_way:
                self._lead()
            room = self._services.room
            if room <= self._room and not made_way:
                break
            for unit in list(unfit):
                self._units.attempt(unit, self._work(unit, again=True))
                if unit in unfit:
                    break
            self._lead()
            self._room = room
        self._room = self._services.room

    def _make_way(self, unit: int) -> bool:
        try:
            return self._services.make_way(unit)
        except TableError as error:
            self._units.failed(FRONTENDS, error)
            return False

    def retry(self) -> None:
        """Try again what failed and whose time has come, all of it at once."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Do what ``retry`` does in steps of a few milliseconds; between two, changes may be applied."""
        units = self._units
        due = units.backlog.due() if len(units.backlog) else ()
        for unit in due:
            if unit in units.backlog:
                units.attempt(unit, self._work(unit, again=True))
                yield
        if due:
            self._lead()
            self._use_room()
        if self._tidy_at is not None and self._tidy_at <= self._clock():
            units.attempt(POLICIES, self._tidy_policies)
            yield
        if not units.drift.due():
            return
        if not units.all_fit:  # not while a unit still fails: it would fail once more
            units.drift.add(ALL)
        elif not self.synced:
            self.sync()
        else:
            yield from self._resync()

    def _resync(self) -> Iterator[None]:
        """Compare the tables with what is known, and bring them in line."""
        units, services = self._units, self._services
        units.drift.add(ALL)
        failures = units.failures
        checked = resync.Checked(self._tables, services, units.backlog)
        keep = not self._complete
        try:
            for unit in services.know_all() if self._complete else ():
                if unit not in units.backlog:
                    units.attempt(unit, lambda unit=unit: services.settle(unit))  # type: ignore[misc]
                    yield
            if self._complete:
                self._place.know_all()
            yield from checked.sets(self._dirty, lambda unit: units.attempt(unit, lambda: services.restore(unit)))
            for table in (services.frontends, services.ranges, *self._place.tables.values()):
                yield from table.audit(keep=keep)
            self._lead()
            self._pods.forget()
            units.attempt(PODS, self._settle_pods)
            yield
            self.policies.generations.look()
            for each in self.policies.tables.values():
                yield from each.audit(keep=keep or not self.cluster.peers_known)
            units.attempt(POLICIES, self._settle_policies)
            yield from checked.names(self._names)
            if self._complete and PODS not in units.backlog:
                yield from checked.strays(self._names)
        except TableError as error:
            log.warning("resync: %s", error.strerror or error)
            return
        if units.failures == failures and units.all_fit:
            units.drift.drop(ALL)
            if self._complete:
                services.count()

    def _retry_due(self) -> None:
        for unit in self._units.backlog.due() if len(self._units.backlog) else ():
            self._units.attempt(unit, self._work(unit, again=True))
            self._lead()

    def _settle_pods(self) -> None:
        self._pods_are_dirty = False
        before = self._pods.problems
        try:
            self._pods.settle(self.cluster.pods.values(), self._wires, self.cluster.claims, keep=not self._complete)
        except TableError:
            self._pods.forget()
            raise
        finally:
            self._refusals.told += self._pods.problems != before
