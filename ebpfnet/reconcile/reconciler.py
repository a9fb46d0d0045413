"""Keeps the tables equal to the cluster: takes model changes in, finds the units they touch, writes differences.

Nothing is written before the first full list has been delivered (``Synced``); then the tables are read back once and
only differences are written. A unit (an endpoint set, or the node's pods) that fails is read back and tried again with
growing patience, and never holds up another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.services import RECORD, Entry, claim, compile_service, compile_slice
from ebpfnet.maps.table import Table, TableError, TableFull
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import (
    Accepted,
    Change,
    Delete,
    EndpointSlice,
    Fact,
    Kind,
    Namespace,
    Node,
    Pod,
    Problem,
    Ref,
    Refused,
    Service,
    Synced,
    Upsert,
)
from ebpfnet.reconcile import readback
from ebpfnet.reconcile.diff import find, records, run_diff
from ebpfnet.reconcile.pods import PodTables
from ebpfnet.reconcile.sets import EndpointSet, SetWriter

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 30.0
RENEW_ABOVE = 64
PODS = 0  # the unit of the node's pods; endpoint sets have ids above


class Reconciler:
    """One node's tables. Not thread-safe: one owner."""

    def __init__(self, tables: Mapping[str, Table], node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster = Cluster(node)
        self.synced = False
        self.gone: set[int] = set()
        """Interfaces that no pod has any more; whoever sweeps flows takes them."""
        self._tables = tables
        self._clock = clock
        self._writer = SetWriter(tables)
        self._pods = PodTables(tables)
        self._wires: dict[str, abi.Wire] = {}
        self._runs: dict[int, dict[Ref, bytes]] = {}
        self._fed_by: dict[Ref, tuple[int, ...]] = {}
        self._entries: dict[Ref, list[Entry]] = {}
        self._wanted: dict[int, tuple[Entry, Ref]] = {}
        self._live: dict[int, EndpointSet] = {}
        self._dirty: dict[int, None] = {}
        self._retry: dict[int, tuple[float, float]] = {}
        self._strays = False
        self._problems: dict[Ref, list[Problem]] = {}
        self._refused: dict[Ref, dict[str, Problem]] = {}
        self._full: dict[int, Problem] = {}

    # What comes in

    def apply(self, changes: Iterable[Change]) -> None:
        """Take changes in and, once synced, write what they touch."""
        for change in changes:
            match change:
                case Upsert(fact):
                    self._upsert(fact)
                case Delete(ref):
                    self._delete(ref)
                case Refused(problem):
                    self._refused.setdefault(problem.ref, {})[problem.field] = problem
                case Accepted(ref):
                    self._refused.pop(ref, None)
                case Synced():
                    self.sync()
        if self.synced:
            self.flush()

    def set_wires(self, wires: Mapping[str, abi.Wire]) -> None:
        """Say which pods (``NAMESPACE/NAME``) have a wire on this node."""
        if dict(wires) != self._wires:
            self._wires = dict(wires)
            self._dirty[PODS] = None
            if self.synced:
                self.flush()

    def _upsert(self, fact: Fact) -> None:
        match fact:
            case EndpointSlice():
                self._feed(fact.ref, compile_slice(fact))
            case Service():
                self._touch_services(self.cluster.set_service(fact))
            case Pod():
                if self.cluster.set_pod(fact):
                    self._dirty[PODS] = None
            case Node():
                self.cluster.nodes[fact.ref] = fact
            case Namespace():
                self.cluster.namespaces[fact.ref] = fact

    def _delete(self, ref: Ref) -> None:
        self._refused.pop(ref, None)
        match ref.kind:
            case Kind.ENDPOINT_SLICE:
                self._feed(ref, {})
            case Kind.SERVICE:
                self._touch_services(self.cluster.drop_service(ref))
            case Kind.POD:
                if self.cluster.drop_pod(ref):
                    self._dirty[PODS] = None
            case Kind.NODE:
                self.cluster.nodes.pop(ref, None)
            case Kind.NAMESPACE:
                self.cluster.namespaces.pop(ref, None)

    def _feed(self, ref: Ref, runs: dict[int, bytes]) -> None:
        """Put a slice's runs in place of what it fed before, and its difference into the kernel at once."""
        before = self._fed_by.get(ref, ())
        for set_id in before:
            if set_id not in runs:
                self._feed_set(ref, set_id, b"")
        for set_id, run in runs.items():
            self._feed_set(ref, set_id, run)
        if runs:
            self._fed_by[ref] = tuple(runs)
        else:
            self._fed_by.pop(ref, None)

    def _feed_set(self, ref: Ref, set_id: int, run: bytes) -> None:
        pieces = self._runs.setdefault(set_id, {})
        before = pieces.get(ref, b"")
        if run:
            pieces[ref] = run
        else:
            pieces.pop(ref, None)
        if not pieces:
            del self._runs[set_id]
        live = self._live.get(set_id)
        if live is None or run == before or set_id in self._dirty or set_id in self._retry:
            return
        removed, added = run_diff(before, run)
        # The API lets an endpoint stand in two slices at once; nearly always the lengths say that none does.
        others = [piece for owner, piece in pieces.items() if owner != ref]
        if sum(map(len, others)) + len(before) == len(live.run):
            added = [record for record in added if find(live.run, record) < 0]
        else:
            removed = [record for record in removed if all(find(piece, record) < 0 for piece in others)]
            added = [record for record in added if all(find(piece, record) < 0 for piece in others)]
        self._attempt(set_id, lambda: self._change(live, removed, added))

    def _touch_services(self, refs: Iterable[Ref]) -> None:
        mine = {}
        for ref in refs:
            for address in service.cluster_ips if (service := self.cluster.services.get(ref)) else ():
                mine[address] = claim(self.cluster.claims[address].values()).ref
        fresh: dict[int, tuple[Entry, Ref]] = {}
        for ref in refs:
            for entry in self._entries.pop(ref, ()):
                if self._wanted[entry.set_id][1] == ref:
                    del self._wanted[entry.set_id]
                self._dirty[entry.set_id] = None
            self._problems.pop(ref, None)
            service = self.cluster.services.get(ref)
            if service is None:
                continue
            entries, problems = compile_service(service, mine)
            self._entries[ref] = entries
            if problems:
                self._problems[ref] = problems
            fresh.update((entry.set_id, (entry, ref)) for entry in entries)
        self._wanted.update(fresh)
        self._dirty.update(dict.fromkeys(fresh))

    # What goes out

    def sync(self) -> None:
        """Read the tables back and write every difference; also the periodic check that nothing has drifted."""
        state = readback.read_services(self._tables)
        self._live = {}
        self._writer.forget(used=sum(map(len, state.slots.values())))
        for set_id, (entry, _) in self._wanted.items():
            live = readback.adopt(state, set_id, entry.frontend)
            if live is not None:
                self._live[set_id] = live
                self._writer.adopt(live)
        self._dirty = dict.fromkeys((*self._wanted, PODS))
        self._retry = {}
        self._pods.forget()
        self.synced = True
        self._remove_strays(state)
        self.flush()
        self._check_names()

    def _remove_strays(self, state: readback.ServiceState) -> None:
        frontends, slots = readback.leftovers(state)
        try:
            self._tables["services"].delete_batch(frontends)
            self._tables["slots"].delete_batch(slots)
            self._strays = False
        except TableError as error:
            log.warning("remove what is left over: %s", error)
            self._strays = True
        self._writer.used -= len(slots)

    def _check_names(self) -> None:
        want = {entry.set_id: entry.label for entry, _ in self._wanted.values()} | self._pods.named
        names = self._tables["names"]
        try:
            for key, value in list(names.items()):
                label = want.pop(int.from_bytes(key, "little"), None)
                if label is None:
                    names.delete(key)
                elif abi.pack_name(label) != value:
                    names.put(key, abi.pack_name(label))
            for identity, label in want.items():
                names.put(identity.to_bytes(8, "little"), abi.pack_name(label))
        except TableError as error:
            log.warning("write names: %s", error)
            self._strays = True

    def flush(self) -> None:
        """Write every unit that is dirty and not waiting for its next try."""
        dirty, self._dirty = self._dirty, {}
        self._create([set_id for set_id in dirty if set_id not in self._live and set_id not in self._retry])
        for unit in dirty:
            if unit in self._retry:
                continue
            if unit == PODS:
                self._attempt(PODS, self._settle_pods)
            else:
                self._attempt(unit, lambda unit=unit: self._settle(unit))  # type: ignore[misc]

    def retry(self) -> None:
        """Try again what failed and whose time has come."""
        now = self._clock()
        for unit, (when, _) in list(self._retry.items()):
            if when <= now:
                self._attempt(unit, self._settle_pods if unit == PODS else lambda unit=unit: self._restore(unit))  # type: ignore[misc]
        if self._strays and not self._retry:
            self._strays = False
            self.sync()

    @property
    def next_retry(self) -> float | None:
        """When ``retry`` has something to do, on the clock; None: never."""
        if self._retry:
            return min(when for when, _ in self._retry.values())
        return self._clock() + RETRY_MAX_S if self._strays else None

    @property
    def pending(self) -> int:
        """How many units are not in the kernel as they should be."""
        return len(self._dirty) + len(self._retry)

    @property
    def problems(self) -> list[Problem]:
        """Everything that was refused or can't be served, by object."""
        found = [problem for group in self._refused.values() for problem in group.values()]
        found += [problem for group in self._problems.values() for problem in group]
        return sorted([*found, *self._full.values(), *self._pods.problems], key=lambda p: (p.ref, p.field))

    def _attempt(self, unit: int, work: Callable[[], None]) -> None:
        try:
            work()
        except TableError as error:
            _, patience = self._retry.get(unit, (0.0, RETRY_FIRST_S / 2))
            patience = min(patience * 2, RETRY_MAX_S)
            self._retry[unit] = (self._clock() + patience, patience)
            self._strays = self._strays or not isinstance(error, TableFull)
            self._name_failure(unit, error)
            if unit == PODS:
                self._pods.forget()
        else:
            self._retry.pop(unit, None)
            self._full.pop(unit, None)

    def _name_failure(self, unit: int, error: TableError) -> None:
        _, ref = self._wanted.get(unit, (None, None))
        text = error.strerror or str(error)
        if isinstance(error, TableFull) and ref is not None:
            self._full[unit] = Problem(ref, "endpoints", text)
        log.warning("%s: %s", ref or "pods of this node", text)

    def _settle_pods(self) -> None:
        self.gone |= self._pods.settle(self.cluster.pods.values(), self._wires)

    def _union(self, set_id: int) -> bytes:
        pieces = list(self._runs.get(set_id, {}).values())
        if len(pieces) < 2:
            return pieces[0] if pieces else b""
        return b"".join(dict.fromkeys(record for piece in pieces for record in records(piece)))

    def _create(self, ids: Iterable[int]) -> None:
        """Write sets that are new, all in a few batches; what does not fit is left to ``_settle``, which names it."""
        fresh: list[EndpointSet] = []
        room = self._writer.room
        frontends_left = self._tables["services"].spec.max_entries - len(self._live)
        for set_id in ids:
            if set_id not in self._wanted or len(fresh) >= frontends_left:
                continue
            run = self._union(set_id)
            room -= len(run) // RECORD
            if room < 0:
                break
            fresh.append(EndpointSet(set_id, self._wanted[set_id][0].frontend, 1, bytearray(run)))
        if not fresh:
            return
        try:
            labels = [abi.pack_name(self._wanted[endpoints.id][0].label) for endpoints in fresh]
            identities = [endpoints.id.to_bytes(8, "little") for endpoints in fresh]
            self._tables["names"].put_batch(b"".join(identities), b"".join(labels))
            self._writer.create(fresh)
        except TableError as error:
            for endpoints in fresh:
                self._attempt(endpoints.id, lambda error=error: _raise(error))  # type: ignore[misc]
        else:
            self._live.update((endpoints.id, endpoints) for endpoints in fresh)

    def _settle(self, set_id: int) -> None:
        """Bring one set from whatever the kernel holds to what is wanted."""
        live = self._live.get(set_id)
        if set_id not in self._wanted:
            if live is not None:
                self._writer.remove_set(live)
                del self._live[set_id]
            self._tables["names"].delete(set_id.to_bytes(8, "little"))
            return
        entry = self._wanted[set_id][0]
        if live is None:
            self._tables["names"].put(set_id.to_bytes(8, "little"), abi.pack_name(entry.label))
            live = EndpointSet(set_id, entry.frontend, 1, bytearray(self._union(set_id)))
            self._writer.create([live])
            self._live[set_id] = live
            return
        if live.frontend != entry.frontend:
            self._writer.move(live, entry.frontend)
        want = self._union(set_id)
        have = records(live.run)
        if len(set(have)) != len(have):  # a removal was cut short: the last backend stands twice
            self._writer.renew(live, want)
        elif bytes(live.run) != want:
            self._change(live, *run_diff(live.run, want))

    def _change(self, live: EndpointSet, removed: list[bytes], added: list[bytes]) -> None:
        if len(removed) + len(added) > max(RENEW_ABOVE, live.count) and self._writer.room >= len(self._union(live.id)):
            self._writer.renew(live, self._union(live.id))
        elif removed or added:
            self._writer.change(live, removed, added)

    def _restore(self, set_id: int) -> None:
        """Try a set again after a failure: what the kernel holds is read, not remembered."""
        live = self._live.pop(set_id, None)
        entry, _ = self._wanted.get(set_id, (None, None))
        frontend = live.frontend if live else entry.frontend if entry else None
        if frontend is not None:
            found = self._writer.read_back(set_id, frontend)
            if found is None and live and entry and entry.frontend != live.frontend:
                found = self._writer.read_back(set_id, entry.frontend)
            if found is not None:
                self._live[set_id] = found
        self._settle(set_id)


def _raise(error: Exception) -> None:
    raise error
