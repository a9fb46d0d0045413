"""Keeps the tables equal to the cluster: takes model changes in, finds the units they touch, writes differences.

Nothing is written before the first full list has been delivered (``Synced``); then the tables are read back once and
only differences are written. While that list is not complete, what the tables hold and nobody knows stays. A unit (an
endpoint set, or the node's pods) that fails is read back and tried again with growing patience, and never holds up
another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from ebpfnet import abi
from ebpfnet.compile.pods import Wires, owners
from ebpfnet.compile.services import compile_slice
from ebpfnet.maps.table import Table, TableError, TableFull
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import (
    Accepted,
    Change,
    Delete,
    EndpointSlice,
    Fact,
    IPAddress,
    Kind,
    PeersKnown,
    Pod,
    Problem,
    Ref,
    Refused,
    Service,
    Synced,
    Upsert,
)
from ebpfnet.reconcile import readback, resync
from ebpfnet.reconcile.backlog import Backlog
from ebpfnet.reconcile.diff import find
from ebpfnet.reconcile.pods import PodTables
from ebpfnet.reconcile.refusals import Refusals
from ebpfnet.reconcile.services import ServiceTables
from ebpfnet.reconcile.sets import DoesNotFit

log = logging.getLogger(__name__)

PODS = ALL = 0  # the unit of the node's pods, endpoint sets have ids above; and all of it, as the unit that drifts


class Reconciler:
    """One node's tables. Not thread-safe: one owner."""

    def __init__(self, tables: Mapping[str, Table], node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster = Cluster(node)
        self.synced = False
        """Whether the tables were read back and brought in line after the first full list."""
        self._tables = tables
        self._clock = clock
        self._services = ServiceTables(tables)
        self._pods = PodTables(tables)
        self._wires = Wires()
        self._dirty: dict[int, None] = {}
        self._backlog = Backlog(clock)
        self._complete = False  # whether what nobody knows of is nobody's
        self._drift = Backlog(clock)  # one unit, ALL: the tables may hold what nobody knows of, a sync will find it
        self._failures = 0
        self._refusals = Refusals()
        self._unfit: dict[int, None] = {}
        self._room = 0

    # What comes in

    def apply(self, changes: Iterable[Change]) -> None:
        """Take changes in and, once synced, write what they touch."""
        for change in changes:
            match change:
                case Upsert(fact):
                    self._upsert(fact)
                case Delete(ref):
                    self._delete(ref)
                case Refused():
                    self._refusals.refuse(change)
                case Accepted(ref):
                    self._refusals.accept(ref)
                case PeersKnown(known):
                    self.cluster.peers_known = known
                case Synced(complete):
                    self._on_synced(complete=complete)
        if self.synced:
            self.flush()

    def _on_synced(self, *, complete: bool) -> None:
        newly = complete and not self._complete
        self._complete |= complete
        if not self.synced:
            self.sync()
        elif newly:
            self._drift.add(ALL)
            self._drift.hurry(ALL)

    def set_wires(self, named: Mapping[str, abi.Wire], behind: Mapping[IPAddress, abi.Wire] | None = None) -> None:
        """Say which pods (``NAMESPACE/NAME``) have a wire on this node, and which addresses are behind other wires."""
        wires = Wires(dict(named), dict(behind or {}))
        if wires != self._wires:
            self._wires = wires
            self._dirty[PODS] = None
            if self.synced:
                self.flush()

    def _upsert(self, fact: Fact) -> None:
        match fact:
            case EndpointSlice():
                self._feed(fact.ref, compile_slice(fact))
            case Service():
                self._set_service(fact.ref, fact)
            case Pod():
                if self.cluster.set_pod(fact):
                    self._dirty[PODS] = None
            case _:
                self.cluster.note(fact)

    def _delete(self, ref: Ref) -> None:
        self._refusals.accept(ref)
        match ref.kind:
            case Kind.ENDPOINT_SLICE:
                self._feed(ref, {})
            case Kind.SERVICE:
                self._set_service(ref, None)
            case Kind.POD:
                if self.cluster.drop_pod(ref):
                    self._dirty[PODS] = None
            case _:
                self.cluster.forget(ref)

    def _set_service(self, ref: Ref, service: Service | None) -> None:
        versions = (self.cluster.services.get(ref), service)
        addresses = [address for each in versions if each for address in each.cluster_ips]
        refs = self.cluster.set_service(service) if service else self.cluster.drop_service(ref)
        self._dirty.update(dict.fromkeys(self._services.want(self.cluster, refs)))
        if self.synced and any(map(self._pods.holds, addresses)):  # it may be named for that, or no longer
            self._dirty[PODS] = None

    def _feed(self, ref: Ref, runs: dict[int, bytes]) -> None:
        """Take a slice in, and write its difference at once: nothing else of its sets is looked at."""
        for fed in self._services.feed(ref, runs):
            if not self.synced or fed.set_id in self._dirty:
                continue
            if fed.set_id in self._backlog:
                self._backlog.hurry(fed.set_id)
            else:
                self._attempt(fed.set_id, lambda fed=fed: self._services.follow(fed))  # type: ignore[misc]

    # What goes out

    def sync(self) -> None:
        """Read the tables back and write every difference: once, before anything else is written."""
        whole = self._tidy(self._read_back)
        if self.synced:
            self.flush()
            whole &= self._tidy(self._services.remove_passed) and self._tidy(self._check_names)
        if not whole:
            self._drift.add(ALL)

    def _read_back(self) -> None:
        leftover = self._services.read_back(keep=not self._complete)
        self._dirty = dict.fromkeys((*self._services.wanted(), PODS))
        self._backlog.clear()
        self._pods.forget()
        self.synced = True
        if self._complete:
            self._services.remove_strays(leftover)

    @staticmethod
    def _tidy(work: Callable[[], None]) -> bool:
        try:
            work()
        except TableError as error:
            log.warning("sync: %s", error.strerror or error)
            return False
        return True

    def _check_names(self) -> None:
        want = self._services.names() | self._pods.named
        readback.put_right(self._tables["names"], want, remove=self._complete)

    def flush(self) -> None:
        """Write every unit that is dirty: new sets first, those that go last, for an address may pass between them."""
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            fine = [unit for unit in dirty if unit not in self._backlog]
            for unit in self._services.strays & dirty.keys():
                self._attempt(unit, lambda unit=unit: self._services.adopt_stray(unit))  # type: ignore[misc]
            self._create(fine)
            for unit in fine:
                self._attempt(unit, lambda unit=unit: self._services.move(unit))  # type: ignore[misc]
            for unit in sorted(dirty, key=lambda unit: self._services.owner(unit) is None):
                if unit in self._backlog:
                    self._backlog.hurry(unit)
                else:
                    self._attempt(unit, self._work(unit))
        self._use_room()
        self._retry_due()

    def _work(self, unit: int, *, again: bool = False) -> Callable[[], None]:
        if unit == PODS:
            return self._settle_pods
        broken = again and unit not in self._unfit  # what did not fit was not begun: its state is known
        return lambda: (self._services.restore if broken else self._services.settle)(unit)

    def _create(self, units: Iterable[int]) -> None:
        """Write sets that are new in a few batches; what does not fit is left to ``settle``, which says so."""
        fresh = self._services.fitting(units)
        try:
            self._services.create(fresh)
        except TableError as error:
            for set_id in fresh:
                self._failed(set_id, error)

    def _use_room(self) -> None:
        """When something was removed, let what did not fit try again: in order, until one still does not."""
        room = self._services.writer.room + self._services.writer.frontend_room
        if self._unfit and room > self._room:
            for unit in list(self._unfit):
                self._attempt(unit, self._work(unit, again=True))
                if unit in self._unfit:
                    break
        self._room = self._services.writer.room + self._services.writer.frontend_room

    def retry(self) -> None:
        """Try again what failed and whose time has come, all of it at once."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Do what ``retry`` does in steps of a few milliseconds; between two, changes may be applied."""
        for unit in self._backlog.due() if len(self._backlog) else ():
            if unit in self._backlog:
                self._attempt(unit, self._work(unit, again=True))
                yield
        if not self._drift.due():
            return
        if not self._backlog.only(self._unfit.keys()):  # not while a unit still fails: it would fail once more
            self._drift.add(ALL)
        elif not self.synced:
            self.sync()
        else:
            yield from self._resync()

    def _resync(self) -> Iterator[None]:
        """Compare the tables with what is known, and bring them in line."""
        self._drift.add(ALL)
        failures = self._failures
        checked = resync.Checked(self._tables, self._services, self._backlog)
        try:
            for unit in self._services.know_all() if self._complete else ():
                if unit not in self._backlog:
                    self._attempt(unit, lambda unit=unit: self._services.settle(unit))  # type: ignore[misc]
                    yield
            yield from self._resync_sets(checked)
            self._pods.forget()
            self._attempt(PODS, self._settle_pods)
            yield
            yield from checked.names(lambda: self._pods.named)
            if self._complete and PODS not in self._backlog:
                yield from checked.strays(lambda: self._pods.named)
        except TableError as error:
            log.warning("resync: %s", error.strerror or error)
            return
        if self._failures == failures and self._backlog.only(self._unfit.keys()):
            self._drift.drop(ALL)
            if self._complete:
                self._services.count()

    def _resync_sets(self, checked: resync.Checked) -> Iterator[None]:
        looked = 0
        for set_id in self._services.wanted():
            start, generation = 0, None
            while set_id not in self._backlog and set_id not in self._dirty and self._services.owner(set_id):
                live = self._services.live(set_id)
                if live is None or not checked.sound(live, start):
                    self._attempt(set_id, lambda: self._services.restore(set_id))  # noqa: B023  # called at once
                    break
                start, looked = start + resync.STEP, looked + 4 + min(resync.STEP, live.count)
                if looked >= resync.STEP:
                    looked = 0
                    yield
                if start >= live.count or generation not in {None, live.generation}:
                    break  # all of it, or it was written anew meanwhile
                generation = live.generation

    def _retry_due(self) -> None:
        for unit in self._backlog.due() if len(self._backlog) else ():
            self._attempt(unit, self._work(unit, again=True))

    @property
    def next_retry(self) -> float | None:
        """When ``retry`` has something to do, on the clock; None: never."""
        return min((when for when in (self._backlog.next, self._drift.next) if when is not None), default=None)

    @property
    def pending(self) -> int:
        """How many units are not in the kernel as they should be."""
        return len(self._dirty) + len(self._backlog)

    @property
    def late(self) -> bool:
        """Whether something could not be written, and not because it does not fit."""
        return bool(self._dirty) or not self._backlog.only(self._unfit.keys())

    @property
    def used(self) -> dict[str, int]:
        """Entries in use, of the tables whose entries are counted."""
        return {
            "slots": self._services.writer.used,
            "services": self._services.writer.frontends,
            "pods": len(self.wires or ()),
        }

    @property
    def told(self) -> int:
        """Counts the changes of ``refusals``, so that who follows them need not compare."""
        return self._refusals.told + self._services.told

    @property
    def refusals(self) -> list[Refused]:
        """Everything that was refused or can't be served, by object and field."""
        left_out = [problem for group in self._services.problems.values() for problem in group] + self._pods.problems
        found = [*self._refusals.found, *(Refused(problem, partial=True) for problem in left_out)]
        return sorted(found, key=lambda each: (each.problem.ref, each.problem.field))

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with each of the ``refusals``."""
        return [each.problem for each in self.refusals]

    @property
    def owners(self) -> dict[int, str]:
        """Interface number to pod (``NAMESPACE/NAME``), for the wires that belong to one."""
        return owners(self.cluster.pods.values(), self._wires)

    @property
    def wires(self) -> Mapping[bytes, bytes] | None:
        """Address to wire of every pod in the tables; None: not known now. Replaced, never changed."""
        return self._pods.wires

    # What flows are judged by

    @property
    def turns(self) -> int:
        """Counts what may leave flows astray: backends that go, frontends that come or go. Who follows it sweeps."""
        return self._services.writer.turns

    def is_frontend(self, frontend: bytes) -> bool:
        """Say whether packets to a packed ``Frontend`` are translated."""
        return self._services.writer.owns(frontend)

    def leads_to(self, frontend: bytes, backend: bytes) -> bool:
        """Say whether a packed ``Frontend`` may lead to a packed ``Backend``; also when that is not known now."""
        set_id = self._services.writer.owner(frontend)
        if set_id is None:
            return not self.synced
        endpoints = self._services.live(set_id)
        return endpoints is None or set_id in self._backlog or find(endpoints.run, backend) >= 0

    def _attempt(self, unit: int, work: Callable[[], None]) -> None:
        try:
            work()
        except TableError as error:
            self._failed(unit, error)
        else:
            if unit in self._backlog:
                self._backlog.drop(unit)
                self._name(unit, None)

    def _failed(self, unit: int, error: TableError) -> None:
        first = self._backlog.add(unit)
        ref, text = self._services.owner(unit), error.strerror or str(error)
        full = isinstance(error, TableFull) and ref is not None
        self._name(unit, Problem(ref, "endpoints", text) if full and ref else None)
        if isinstance(error, DoesNotFit):  # computed before anything was written
            self._unfit[unit] = None
        else:
            self._failures += 1
            if ALL not in self._drift:
                self._drift.add(ALL)
            log.log(logging.WARNING if first else logging.DEBUG, "%s: %s", ref or "pods of this node", text)
        if unit == PODS:
            self._pods.forget()

    def _name(self, unit: int, problem: Problem | None) -> None:
        self._unfit.pop(unit, None)
        self._refusals.does_not_fit(unit, problem)

    def _settle_pods(self) -> None:
        before = self._pods.problems
        try:
            self._pods.settle(self.cluster.pods.values(), self._wires, self.cluster.claims, keep=not self._complete)
        finally:
            self._refusals.told += self._pods.problems != before
