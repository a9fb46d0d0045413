"""``services``, ``slots`` and the names of endpoint sets: what is wanted, what the kernel holds, and the way there.

A set's wanted backends are the union of its pieces, one packed run for each slice that feeds it. A changed slice is
followed by its own difference; the other slices matter only for endpoints that stand in two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.services import RECORD, Entry, claim, compile_service
from ebpfnet.maps.table import Table
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Kind, Problem, Ref
from ebpfnet.reconcile import readback
from ebpfnet.reconcile.diff import find, records, run_diff
from ebpfnet.reconcile.sets import EndpointSet, SetWriter

RENEW_ABOVE = 64
UNKNOWN = Ref(Kind.ENDPOINT_SLICE, "", "")  # what a set was found with, and no slice says
MANY = 32  # additions from which a set of records is cheaper than so many searches


class Fed(NamedTuple):
    """A set that a slice feeds, and the slice's run in it before and now."""

    set_id: int
    slice: Ref
    before: bytes
    now: bytes


class ServiceTables:
    """Endpoint sets and their frontends. Methods that write raise ``TableError``; then ``restore`` the set."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.writer = SetWriter(tables)
        self.problems: dict[Ref, list[Problem]] = {}
        self.told = 0  # counts the changes of problems
        self._tables = tables
        self._names = tables["names"]
        self._entries: dict[Ref, list[Entry]] = {}
        self._wanted: dict[int, tuple[Entry, Ref]] = {}
        self._pieces: dict[int, dict[Ref, bytes]] = {}
        self._fed_by: dict[Ref, tuple[int, ...]] = {}
        self._live: dict[int, EndpointSet] = {}
        self._passing: dict[bytes, list[bytes]] = {}
        self._in_part: set[int] = set()  # sets with backends that no slice knows
        self._strays: dict[int, list[bytes]] = {}  # sets that nobody knows (yet), and their frontends

    # What is wanted

    def feed(self, ref: Ref, runs: Mapping[int, bytes]) -> Iterator[Fed]:
        """Put a slice's runs in place of what it fed before; yields the sets that changed."""
        for set_id in dict.fromkeys((*self._fed_by.get(ref, ()), *runs)):
            run = runs.get(set_id, b"")
            pieces = self._pieces.setdefault(set_id, {})
            before = pieces.pop(ref, b"")
            if run:
                pieces[ref] = run
            if UNKNOWN in pieces:
                _subtract(pieces, run)
            if not pieces:
                del self._pieces[set_id]
            if run != before:
                yield Fed(set_id, ref, before, run)
        if runs:
            self._fed_by[ref] = tuple(runs)
        else:
            self._fed_by.pop(ref, None)

    def want(self, cluster: Cluster, refs: Iterable[Ref]) -> set[int]:
        """Compile services again, those that are gone too; returns the sets that are touched."""
        services = {ref: cluster.services.get(ref) for ref in refs}
        mine = {
            address: claim(cluster.claims[address].values())
            for service in services.values()
            for address in (service.cluster_ips if service else ())
        }
        touched: set[int] = set()
        for ref, service in services.items():
            before = self.problems.pop(ref, None)
            for entry in self._entries.pop(ref, ()):
                self._wanted.pop(entry.set_id, None)
                touched.add(entry.set_id)
            if service is None:
                self.told += before is not None
                continue
            entries, problems = compile_service(service, mine)
            self._entries[ref] = entries
            self._wanted.update((entry.set_id, (entry, ref)) for entry in entries)
            touched.update(entry.set_id for entry in entries)
            if problems:
                self.problems[ref] = problems
            self.told += (before or []) != problems
        return touched

    def owner(self, set_id: int) -> Ref | None:
        """Return the service that a set is wanted for."""
        return self._wanted[set_id][1] if set_id in self._wanted else None

    def wanted(self) -> list[int]:
        """Return every set that a service wants."""
        return list(self._wanted)

    def names(self) -> dict[int, str]:
        """Return the names of the sets that are wanted."""
        return {set_id: entry.label for set_id, (entry, _) in self._wanted.items()}

    def label(self, set_id: int) -> str | None:
        """Return the name of a set that is wanted, None for any other."""
        return self._wanted[set_id][0].label if set_id in self._wanted else None

    def live(self, set_id: int) -> EndpointSet | None:
        """Return a set as the kernel holds it; None: it does not, or that is not known now."""
        return self._live.get(set_id)

    def count(self) -> None:
        """Count the slots in use anew: nothing but known sets is left."""
        self.writer.used = sum([live.count for live in self._live.values()])

    def _union(self, set_id: int) -> bytes:
        pieces = list(self._pieces.get(set_id, {}).values())
        if len(pieces) < 2:
            return pieces[0] if pieces else b""
        return b"".join(dict.fromkeys(record for piece in pieces for record in records(piece)))

    # The way there

    def follow(self, fed: Fed) -> None:
        """Bring a slice's difference into its set, which is as it should be but for this."""
        live = self._live.get(fed.set_id)
        if live is None:
            return
        pieces = self._pieces.get(fed.set_id, {})
        removed, added = run_diff(fed.before, fed.now)
        total = sum(map(len, pieces.values())) - len(fed.now) + len(fed.before)
        if removed and total != len(live.run):  # the API lets an endpoint stand in two slices at once
            others = [piece for ref, piece in pieces.items() if ref != fed.slice]
            removed = [record for record in removed if all(find(piece, record) < 0 for piece in others)]
        if added and (len(pieces) > 1 or len(live.run) != len(fed.before)):
            there = set(records(live.run)) if len(added) > MANY else None
            added = [each for each in added if (find(live.run, each) < 0 if there is None else each not in there)]
        self._change(live, removed, added)

    def fitting(self, ids: Iterable[int]) -> list[int]:
        """Return the sets among ``ids`` that are new, and for which there is room all together."""
        room, frontends = self.writer.room, self.writer.frontend_room
        fresh = []
        for set_id in ids:
            if set_id not in self._wanted or set_id in self._live:
                continue
            count = len(self._union(set_id)) // RECORD
            more = not self.writer.owns(self._wanted[set_id][0].frontend)
            if count <= room and more <= frontends:
                fresh.append(set_id)
                room -= count
                frontends -= more
        return fresh

    def create(self, ids: list[int]) -> None:
        """Write new sets that fit, in a few batches."""
        if not ids:
            return
        entries = [self._wanted[set_id][0] for set_id in ids]
        labels = b"".join([abi.pack_name(entry.label) for entry in entries])
        self._names.put_batch(b"".join([_name_key(set_id) for set_id in ids]), labels)
        fresh = [EndpointSet(e.set_id, e.frontend, 1, bytearray(self._union(e.set_id))) for e in entries]
        self.writer.create(fresh)
        self._live.update((endpoints.id, endpoints) for endpoints in fresh)

    def settle(self, set_id: int) -> None:
        """Bring one set from whatever the kernel holds to what is wanted."""
        live = self._live.get(set_id)
        if set_id not in self._wanted:
            if live is not None:
                self.writer.remove_set(live)
                del self._live[set_id]
            self._names.delete(_name_key(set_id))
            return
        entry, want = self._wanted[set_id][0], self._union(set_id)
        if live is None:
            self.writer.demand(len(want) // RECORD, entry.frontend)
            self.create([set_id])
            return
        self.move(set_id)
        self.writer.leave()  # before a slot changes: what was left leads to the same slots
        have = records(live.run)
        if len(set(have)) != len(have):  # a removal was cut short: the last backend stands twice
            self._renew(live, want)
        elif live.run != want:
            self._change(live, *run_diff(live.run, want))

    def move(self, set_id: int) -> None:
        """Let the frontend that is wanted lead to a set, too; ``writer.leave`` ends the one that it had."""
        live, entry = self._live.get(set_id), self._wanted.get(set_id, (None, None))[0]
        if live is not None and entry is not None and live.frontend != entry.frontend:
            self._names.put(_name_key(set_id), abi.pack_name(entry.label))  # a port without a name is named by number
            self.writer.move(live, entry.frontend)

    def _renew(self, live: EndpointSet, want: bytes) -> None:
        if self.writer.room >= len(want) // RECORD:
            self.writer.renew(live, want)
        else:  # no room for both: the frontend waits a moment
            self.writer.remove_set(live)
            del self._live[live.id]
            self.settle(live.id)

    def _change(self, live: EndpointSet, removed: list[bytes], added: list[bytes]) -> None:
        if len(removed) + len(added) > max(RENEW_ABOVE, live.count):
            want = self._union(live.id)
            if self.writer.room >= len(want) // RECORD:
                self.writer.renew(live, want)
                return
        self.writer.change(live, removed, added)

    def restore(self, set_id: int) -> None:
        """Try a set again after a failure: what the kernel holds is read, not remembered."""
        live = self._live.pop(set_id, None)
        entry, _ = self._wanted.get(set_id, (None, None))
        found = None
        for frontend in dict.fromkeys([each.frontend for each in (live, entry) if each]):
            found = found or self.writer.read_back(set_id, frontend)
        if found is not None:
            self._live[set_id] = found
        if set_id in self._strays:
            self.adopt_stray(set_id)
        if entry is not None and set_id in self._live:
            readback.name(self._names, set_id, entry.label)
        self.settle(set_id)

    # What was there when we came

    def read_back(self, *, keep: bool) -> readback.ServiceState:
        """Adopt what the tables hold; returns what is left over, which stays with ``keep``: backends, too."""
        state = readback.read_services(self._tables)
        self._live = {}
        self._passing = {}
        self.writer.forget(used=sum(map(len, state.slots.values())))
        for set_id, (entry, _) in self._wanted.items():
            self._adopt(state, set_id, entry.frontend)
        for frontend, service in list(state.frontends.items()):
            if service.id in self._wanted and service.id not in self._live:  # its address changed meanwhile
                self._adopt(state, service.id, frontend)
        self._strays = {}
        if keep:
            for frontend, service in state.frontends.items():
                self.writer.keep(service.id, frontend, stays=service.id not in self._live)
                if service.id not in self._live:
                    self._strays.setdefault(service.id, []).append(frontend)
            for set_id in self._live:
                self._keep_unknown(set_id)
        return state

    def _keep_unknown(self, set_id: int) -> None:
        """Make a piece of the backends that a set was found with and that no slice knows."""
        known = set(records(self._union(set_id)))
        found = dict.fromkeys(records(self._live[set_id].run))
        unknown = b"".join([each for each in found if each not in known and any(each)])
        if unknown:
            self._pieces.setdefault(set_id, {})[UNKNOWN] = unknown
            self._in_part.add(set_id)

    def know_all(self) -> list[int]:
        """Forget what was kept because somebody might know it; returns the sets that this leaves to be settled."""
        changed, self._in_part, self._strays = list(self._in_part), set(), {}
        for set_id in changed:
            pieces = self._pieces.get(set_id, {})
            pieces.pop(UNKNOWN, None)
            if not pieces:
                self._pieces.pop(set_id, None)
        return changed

    @property
    def strays(self) -> AbstractSet[int]:
        """The sets in the tables that nobody knew when these were read."""
        return self._strays.keys()

    def adopt_stray(self, set_id: int) -> None:
        """Take over a set that somebody knows by now, with the first of its frontends."""
        if set_id not in self._wanted:
            return
        for frontend in self._strays[set_id]:
            live = self._live.get(set_id)
            found = None if live and live.frontend == frontend else self.writer.read_back(set_id, frontend)
            if found is not None and live is not None:
                self.writer.keep(set_id, frontend, stays=False)
            elif found is not None:
                self._live[set_id] = found
                self._keep_unknown(set_id)
        del self._strays[set_id]

    def _adopt(self, state: readback.ServiceState, set_id: int, frontend: bytes) -> None:
        live = readback.adopt(state, set_id, frontend)
        if live is not None:
            self._live[set_id] = live
            self.writer.adopt(live)

    def remove_strays(self, state: readback.ServiceState) -> None:
        """Remove what is left over, but for frontends that another set will take: those serve until then."""
        awaited = {entry.frontend for entry, _ in self._wanted.values()}
        passing = {
            (service.id, service.generation): frontend
            for frontend, service in state.frontends.items()
            if frontend in awaited and service.id not in self._live
        }
        kept: dict[bytes, list[bytes]] = {frontend: [] for frontend in passing.values()}
        stray: list[bytes] = []
        for head, held in state.slots.items():
            keys = [abi.Slot(*head, index).pack() for index in held]
            (kept[passing[head]] if head in passing else stray).extend(keys)
        self._tables["services"].delete_batch([each for each in state.frontends if each not in kept])
        self._tables["slots"].delete_batch(stray)
        self.writer.used -= len(stray)
        self._passing = kept

    def remove_passed(self) -> None:
        """Remove the slots of the frontends that lead to another set by now; of the others a later sync."""
        for frontend, keys in self._passing.items():
            if self.writer.owns(frontend):
                self._tables["slots"].delete_batch(keys)
                self.writer.used -= len(keys)
        self._passing = {}


def _subtract(pieces: dict[Ref, bytes], run: bytes) -> None:
    """Take out of the unknown backends what a slice knows by now."""
    known = set(records(run))
    rest = b"".join([each for each in records(pieces[UNKNOWN]) if each not in known])
    if rest:
        pieces[UNKNOWN] = rest
    else:
        del pieces[UNKNOWN]


def _name_key(identity: int) -> bytes:
    return identity.to_bytes(8, "little")
