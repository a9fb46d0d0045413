"""Endpoint sets, and what leads to them: what is wanted, what the kernel holds, and the way there.

A set's wanted backends follow from the pieces of its group, one for each slice that feeds it. A changed slice is
followed by its own difference, unless it changes which of the pieces' runs the set is made of; the other slices matter
only for endpoints that stand in two of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.endpoints import Piece, chosen
from ebpfnet.compile.services import RECORD, Wanted, compile_service
from ebpfnet.maps.table import Table
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Problem, Ref
from ebpfnet.model.host import Host
from ebpfnet.reconcile import readback
from ebpfnet.reconcile.departures import Departures
from ebpfnet.reconcile.diff import find, records, run_diff
from ebpfnet.reconcile.frontends import Frontends, sets_of
from ebpfnet.reconcile.groups import Fed, Groups, Made, without
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.sets import EndpointSet, SetWriter, set_key

RENEW_ABOVE = 64
MANY = 32  # additions from which a set of records is cheaper than so many searches
_ONE = (1).to_bytes(4, "little")


class ServiceTables:
    """Endpoint sets and their frontends. Methods that write raise ``TableError``; then ``restore`` the set."""

    def __init__(self, tables: Mapping[str, Table], node: str) -> None:
        self.writer = SetWriter(tables)
        self.groups = Groups(node)
        self.frontends = Frontends(tables["services"], node, self._is_ready)
        self.ranges = Keyed(tables["ranges"])
        self.departures = Departures()
        self.problems: dict[Ref, list[Problem]] = {}
        self.told = 0  # counts the changes of problems
        self._tables = tables
        self._names = tables["names"]
        self._refused: dict[Ref, list[Problem]] = {}  # of a service by itself
        self._sets_of: dict[Ref, tuple[int, ...]] = {}
        self._ranges_of: dict[Ref, list[bytes]] = {}
        self._asked: dict[int, tuple[Wanted, Ref]] = {}  # sets that services ask for
        self._wanted: dict[int, tuple[Wanted, Ref]] = {}  # those of them that a frontend is to lead to
        self._in_group: dict[int, tuple[int, ...]] = {}  # sets that are wanted, by group
        self._live: dict[int, EndpointSet] = {}
        self._leaving: set[int] = set()  # sets that nobody wants any more
        self._unasked: set[int] = set()  # sets with members that nobody wants any more
        self._unknown: dict[int, bytes] = {}  # backends of sets in the tables that no slice knows

    # What is wanted

    def want(self, cluster: Cluster, host: Host, refs: Collection[Ref]) -> set[int]:
        """Compile services again, those that are gone too; returns the sets that are touched."""
        touched: set[int] = set()
        keys: set[bytes] = set()
        for ref in refs:
            service = cluster.services.get(ref)
            compiled = compile_service(service, host) if service else None
            keys |= self.frontends.claim(ref, compiled)
            touched |= self._ask_sets(ref, compiled.sets if compiled else {})
            self._want_ranges(ref, compiled.ranges if compiled else [])
            if compiled and compiled.problems:
                self._refused[ref] = compiled.problems
            else:
                self._refused.pop(ref, None)
        askers = self.frontends.award(keys, cluster.services)
        touched.update(set_id for ref in askers for set_id in self._sets_of.get(ref, ()))
        self._want_sets(touched)
        for ref in askers.union(refs):
            found = self._refused.get(ref, []) + self.frontends.lost(ref, cluster.services)
            self.told += self.problems.get(ref, []) != found
            if found:
                self.problems[ref] = found
            else:
                self.problems.pop(ref, None)
        self.frontends.know_sets(touched)
        return touched

    def _ask_sets(self, ref: Ref, sets: Mapping[int, Wanted]) -> set[int]:
        before = self._sets_of.pop(ref, ())
        for set_id in before:
            del self._asked[set_id]
        for set_id, want in sets.items():
            self._asked[set_id] = want, ref
        if sets:
            self._sets_of[ref] = tuple(sets)
        return {*before, *sets}

    def _want_sets(self, ids: Iterable[int]) -> None:
        """Want those sets that services ask for and frontends are to lead to, and no others."""
        for set_id in ids:
            before = self._wanted.pop(set_id, None)
            now = self._asked.get(set_id) if set_id in self.frontends.leads else None
            if now is not None:
                self._wanted[set_id] = now
                self._leaving.discard(set_id)
                if set_id in self._unknown:
                    self._know(set_id)
            elif before is not None:
                self._leaving.add(set_id)
            if (before is None) != (now is None):
                group = (now or before or (None,))[0].group  # type: ignore[union-attr]  # one of them is there
                left = [each for each in self._in_group.pop(group, ()) if each != set_id]
                if now is not None:
                    left.append(set_id)
                if left:
                    self._in_group[group] = tuple(left)

    def _want_ranges(self, ref: Ref, ranges: list[bytes]) -> None:
        before = self._ranges_of.pop(ref, [])
        for key in before:
            if key not in ranges:
                self.ranges.ask(key, None)
        for key in ranges:
            self.ranges.ask(key, _ONE)
        if ranges:
            self._ranges_of[ref] = ranges

    def shut_out(self) -> list[Problem]:
        """Name the services some of whose clients are dropped, because their ranges have no room."""
        unfit, size = self.ranges.unfit.keys(), self._tables["ranges"].spec.max_entries
        counts = {ref: len(unfit & set(keys)) for ref, keys in self._ranges_of.items()} if unfit else {}
        text = "needs {} more source ranges, and table ranges ({} entries) is full: clients in these are dropped"
        field = "spec.loadBalancerSourceRanges"
        return [Problem(ref, field, text.format(count, size)) for ref, count in counts.items() if count]

    def feed(self, ref: Ref, made: Mapping[int, Piece]) -> Iterable[Fed]:
        """Put a slice's pieces in place of what it fed before; returns what changed."""
        found = list(self.groups.feed(ref, made))
        for set_id in [each for group in made for each in self.fed_by(group)] if self._unknown else ():
            self._know(set_id)
        return found

    def fed_by(self, group: int) -> tuple[int, ...]:
        """Return the sets of a group that are wanted."""
        return self._in_group.get(group, ())

    def owner(self, set_id: int) -> Ref | None:
        """Return the service that a set is wanted for."""
        return self._wanted[set_id][1] if set_id in self._wanted else None

    def wanted(self) -> list[int]:
        """Return every set that a service wants."""
        return list(self._wanted)

    def names(self) -> dict[int, str]:
        """Return the names of the sets that are wanted."""
        return {set_id: want.label for set_id, (want, _) in self._wanted.items()}

    def label(self, set_id: int) -> str | None:
        """Return the name of a set that is wanted, None for any other."""
        return self._wanted[set_id][0].label if set_id in self._wanted else None

    def group(self, set_id: int) -> int | None:
        """Return the group of a set that is wanted."""
        return self._wanted[set_id][0].group if set_id in self._wanted else None

    def live(self, set_id: int) -> EndpointSet | None:
        """Return a set as the kernel holds it; None: it does not, or that is not known now."""
        return self._live.get(set_id)

    def count(self) -> None:
        """Count what is in use anew: nothing but known sets is left."""
        lives = self._live.values()
        members = sum([len(set(records(live.run))) for live in lives if live.members])
        self.writer.used = {"sets": len(lives), "slots": sum([live.count for live in lives]), "members": members}

    @property
    def room(self) -> int:
        """Return how much room there is, all tables together: more than before, and what did not fit may."""
        used = ("sets", "slots", "members")
        return sum(map(self.writer.room, used)) + self.frontends.room + self.ranges.room

    def _is_ready(self, set_id: int) -> bool:
        live = self._live.get(set_id)
        return live is not None and (live.members or set_id not in self._wanted or not self._wanted[set_id][0].members)

    def _made(self, set_id: int) -> Made:
        return self.groups.made(self._wanted[set_id][0], self._unknown.get(set_id, b""))

    # The way there

    def follow(self, fed: Fed, set_id: int) -> None:
        """Bring a slice's difference into a set of its group, which is as it should be but for this."""
        live = self._live.get(set_id)
        if live is None:
            return
        want = self._wanted[set_id][0]
        choice = self.groups.choice(want)
        # A table, by now or until now, follows from all the pieces.
        table = live.flags & abi.SetFlag.WEIGHTED or self.groups.is_table(want)
        if table or choice != live.choice or set_id in self._unknown:
            self.settle(set_id)
            return
        before, now = (chosen(piece, choice) if piece else b"" for piece in (fed.before, fed.now))
        if before == now:
            return
        pieces = {ref: chosen(piece, choice) for ref, piece in self.groups.pieces(fed.group).items()}
        removed, added = run_diff(before, now)
        total = sum(map(len, pieces.values())) - len(now) + len(before)
        if removed and total != len(live.run):  # the API lets an endpoint stand in two slices at once
            others = [piece for ref, piece in pieces.items() if ref != fed.slice]
            removed = [record for record in removed if all(find(piece, record) < 0 for piece in others)]
        if added and (len(pieces) > 1 or len(live.run) != len(before)):
            there = set(records(live.run)) if len(added) > MANY else None
            added = [each for each in added if (find(live.run, each) < 0 if there is None else each not in there)]
        self._change(live, removed, added, None)

    def fitting(self, ids: Iterable[int]) -> list[EndpointSet]:
        """Return the sets among ``ids`` that are new, and for which there is room all together."""
        room = {name: self.writer.room(name) for name in self.writer.used}
        fresh = []
        for set_id in ids:
            if set_id not in self._wanted or set_id in self._live:
                continue
            each = self._fresh(set_id)
            members = len(set(records(each.run))) if each.members else 0
            demand = {"sets": 1, "slots": each.count, "members": members}
            if all(count <= room[name] for name, count in demand.items()):
                fresh.append(each)
                room = {name: left - demand[name] for name, left in room.items()}
        return fresh

    def _fresh(self, set_id: int) -> EndpointSet:
        want, made = self._wanted[set_id][0], self._made(set_id)
        each = EndpointSet(set_id, 1, bytearray(made.run), made.flags)
        each.choice, each.label, each.members = made.choice, want.label, want.members
        return each

    def create(self, fresh: list[EndpointSet]) -> None:
        """Write new sets that fit, in a few batches."""
        if not fresh:
            return
        self.writer.create(fresh)
        self._live.update((each.id, each) for each in fresh)
        self.departures.come(each.id for each in fresh)
        labels = b"".join([abi.pack_name(each.label or "") for each in fresh])
        self._names.put_batch(b"".join([set_key(each.id) for each in fresh]), labels)

    def settle(self, set_id: int) -> None:
        """Bring one set from whatever the kernel holds to what is wanted."""
        live = self._live.get(set_id)
        if set_id not in self._wanted:
            self._leave(set_id)
            return
        want = self._wanted[set_id][0]
        if live is None:
            fresh = self._fresh(set_id)
            members = len(set(records(fresh.run))) if fresh.members else 0
            self.writer.demand(fresh.count, 1, members)
            self.create([fresh])
            return
        if live.label != want.label:  # a port without a name is named by number
            self._names.put(set_key(set_id), abi.pack_name(want.label))
            live.label = want.label
        if want.members and not live.members:
            self.writer.enrol(live)
        elif live.members and not want.members:
            self._unasked.add(set_id)
        made = self._made(set_id)
        live.choice = None
        # A removal that was cut short leaves the last backend twice.
        if made.table or len(set(records(live.run))) < live.count:
            if live.run != made.run or live.flags != made.flags:
                self.writer.put(live, made)
        elif live.run != made.run or live.flags != made.flags:
            self._change(live, *run_diff(live.run, made.run), made)
        live.choice = made.choice

    def _leave(self, set_id: int) -> None:
        live = self._live.get(set_id)
        if set_id in self.frontends.uses or set_id in self._unknown:
            return
        if live is not None:
            self.writer.remove(live)
            del self._live[set_id]
            self.departures.leave(set_id)
        self._names.delete(set_key(set_id))
        self._leaving.discard(set_id)

    def _change(self, live: EndpointSet, removed: list[bytes], added: list[bytes], made: Made | None) -> None:
        if len(removed) + len(added) > max(RENEW_ABOVE, live.count):
            made = made or self._made(live.id)
            if self.writer.room("slots") >= len(made.run) // RECORD:
                self.writer.put(live, made)
                return
        self.writer.change(live, removed, added, made.flags if made else live.flags)

    def restore(self, set_id: int) -> None:
        """Try a set again after a failure: what the kernel holds is read, not remembered."""
        before = self._live.pop(set_id, None)
        found = self.writer.read_back(set_id)
        if found is not None:
            self._live[set_id] = found
        if before is not None and before.members:
            gone = set(records(before.run)) - set(records(found.run if found else b""))
            self.writer.used["members"] -= len(set(records(before.run)))
            self.writer.expel(set_id, gone)
        self.settle(set_id)

    # What goes last

    def leaving(self) -> list[int]:
        """Return the sets that nobody wants, and that no frontend leads to any more."""
        if not self._leaving:
            return []
        return [each for each in self._leaving if each not in self.frontends.uses and each not in self._unknown]

    def unasked(self) -> list[int]:
        """Return the sets whose members nobody wants any more, and nobody looks for."""
        return list(self._unasked)

    def dismiss(self, set_id: int) -> None:
        """Let go of the members of a set, unless they are wanted again by now."""
        live = self._live.get(set_id)
        if live is not None and live.members and set_id in self._wanted and not self._wanted[set_id][0].members:
            self.writer.dismiss(live)
        self._unasked.discard(set_id)

    def make_way(self, set_id: int) -> bool:
        """Give up frontends of a set that has no room, if what they lead to now goes with them and leaves enough."""
        if set_id not in self._wanted or set_id in self._live:
            return False
        keys = self.frontends.waiting_for(set_id)
        led = [each for key in keys for each in sets_of(self.frontends.have[key])]
        old = {each: led.count(each) for each in led}
        if not keys or any(each in self._wanted or self.frontends.uses[each] > n for each, n in old.items()):
            return False
        freed = sum(self._live[each].count for each in old if each in self._live)
        if self._fresh(set_id).count > self.writer.room("slots") + freed or self.writer.room("sets") + len(old) < 1:
            return False
        self.frontends.give_up(keys)
        return True

    # What was there when we came

    def read_back(self, *, keep: bool) -> readback.Found:
        """Adopt what the tables hold; what nobody knows stays with ``keep``: sets, backends, frontends, ranges."""
        self.frontends.read_back(keep=keep)
        self.ranges.read_back(keep=keep)
        found = readback.read_sets(self._tables, lambda each: each in self._wanted and self._wanted[each][0].members)
        self.frontends.know_sets(self._wanted.keys())
        self._live = found.live
        self.writer.used = found.used
        self._leaving = {set_id for set_id in found.live if set_id not in self._wanted}
        self._unasked = set()
        self._unknown = {}
        self.writer.turns += 1
        for set_id, live in found.live.items():
            live.label = self.label(set_id)
            if keep:
                self._unknown[set_id] = without(bytes(live.run), ())
                self._know(set_id)
        return found

    def remove_strays(self, found: readback.Found) -> None:
        """Remove slots and members that no set holds; raises ``TableError``."""
        for name, keys in (("slots", found.slots), ("members", found.members)):
            self._tables[name].delete_batch(keys)
            self.writer.used[name] -= len(keys)

    def _know(self, set_id: int) -> None:
        """Take out of a set's unknown backends what a slice knows by now."""
        if set_id not in self._unknown or set_id not in self._wanted:
            return
        pieces = self.groups.pieces(self._wanted[set_id][0].group).values()
        rest = without(self._unknown[set_id], [piece.listed for piece in pieces])
        if set_id in self._live:
            self._live[set_id].choice = None  # what is known by now need not be wanted
        if rest:
            self._unknown[set_id] = rest
        else:
            del self._unknown[set_id]

    def know_all(self) -> list[int]:
        """Forget what was kept because somebody might know it; returns the sets that this leaves to be settled."""
        changed, self._unknown = list(self._unknown), {}
        self.frontends.know_all()
        self.ranges.know_all()
        return [set_id for set_id in changed if set_id in self._wanted]
