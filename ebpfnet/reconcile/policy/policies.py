"""Policies to tables: what an event touches, and the order of writes that keeps every verdict right.

1. Names, ranges of ports, and rules that no packet can meet yet: of new groups, and of new classes.
2. Blocks and peers that are of another class now. Of new classes is said what was said of those who move there
   (``meanwhile.py``), so that changes nothing by itself.
3. Rules of groups that no pod is about to leave, one entry at a time; then pods get the groups that are as they should
   be, and so on: what a pod meets changes when its group says something else, or when it gets another one, never twice.
4. Blocks and peers that went by a class of their own are where they are to be.
5. Generations: flows of pods whose verdicts may be others are judged again.
6. A moment later, when no program runs any more that may have seen them: what nobody needs. Groups without pods, and
   predicates that only they asked, go then; so their classes are joined, and nobody can tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ebpfnet import abi
from ebpfnet.maps.table import Table
from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import PodPort, Policy, Problem, Ref
from ebpfnet.model.peers import Home, pack, split
from ebpfnet.reconcile.policy.block_table import BlockTable
from ebpfnet.reconcile.policy.blocks import unpack_block
from ebpfnet.reconcile.policy.cells import NOBODY, Found
from ebpfnet.reconcile.policy.classes import Classes
from ebpfnet.reconcile.policy.entries import Entries
from ebpfnet.reconcile.policy.generations import Generations
from ebpfnet.reconcile.policy.meanwhile import Meanwhile, Ways, steps
from ebpfnet.reconcile.policy.members import Members, leaving, owners
from ebpfnet.reconcile.policy.questions import NONE, Answers
from ebpfnet.reconcile.policy.regimes import Regimes
from ebpfnet.reconcile.policy.room import move, stuck, without_room
from ebpfnet.reconcile.policy.rule_names import RuleNames
from ebpfnet.reconcile.policy.seated import Look
from ebpfnet.reconcile.policy.subjects import Subjects
from ebpfnet.reconcile.policy.tables import (
    EVERY,
    Lazy,
    PeerTable,
    Phase,
    PortTable,
    RuleTable,
    place_of,
)
from ebpfnet.reconcile.sets import DoesNotFit

GRACE_S = 0.05


class Policies:
    """All tables that policies are in. Methods that write raise ``TableError``; then they may be called again."""

    def __init__(
        self, tables: Mapping[str, Table], cluster: Cluster, clock: Callable[[], float], *, graceful: bool = False
    ) -> None:
        self.rules = RuleTable(tables["rules"], self._is_seen)
        self.ports = PortTable(tables["rule_ports"])
        self.generations = Generations(tables["generations"])
        self.classes = Classes()
        self.entries = Entries(self.ports)
        self.regimes = Regimes(self.classes, self.rules, self.entries, graceful=graceful)
        self.peers = PeerTable(tables["peers"], self._is_ready)
        self.blocks = BlockTable(tables["peer_blocks"], self._is_ready, self.regimes.too_open)
        self.subjects = Subjects(cluster)
        self.problems: list[Problem] = []
        self.tidy_at: float | None = None
        """When to remove what nobody needs, on the clock; None: there is nothing."""
        self._names = RuleNames(tables["names"])
        self._cluster = cluster
        self._clock = clock
        self._loaded = False
        self._dirty = False
        self._again: dict[Ref, None] = {}  # policies that are others
        self._back: dict[int, None] = {}  # groups without pods that get some again: their policies may be others
        self._named: set[tuple[str, int]] = set()  # named ports that have another number, too
        self._members = Members()
        self._look = Look()
        self._lacking: set[int] = set()  # classes that nobody is in yet, and whose rules are not all there
        self._past: dict[int, Answers] = {}  # what classes answered before
        self._apart: set[int] = set()  # groups that speak of who could not move

    # What comes in

    def set_policy(self, ref: Ref, policy: Policy | None) -> None:
        """Take a policy in, or with None that it is gone."""
        if self._loaded and self.subjects.set_policy(ref, policy):
            self._again[ref] = None
            self._dirty = True

    def set_pod(self, ref: Ref) -> None:
        """Look again at a pod of this node."""
        if self._loaded:
            self.subjects.set_pod(ref, self._cluster.pods.get(ref))
            self._dirty = True

    def move(self, before: Home | None, now: Home | None) -> None:
        """Take in that a pod of any node is somewhere else, or another one."""
        if not self._loaded or before == now:
            return
        for address in before.each() if before else ():
            self.classes.leave(before.likeness, address)  # type: ignore[union-attr]
        if now:
            self._name(now.likeness.ports)
            for address in now.each():
                self.classes.enter(now.likeness, address)
        self._dirty = True

    def _name(self, ports: Iterable[PodPort]) -> None:
        self._named.update((each.name, each.protocol) for each in ports if not self.classes.groups.knows(each))

    def set_namespace(self, ref: Ref) -> None:
        """Look again at a namespace."""
        if self._loaded:
            found = self._cluster.namespaces.get(ref)
            self.classes.set_namespace(ref.name, found.labels if found else None)
            self.subjects.set_namespace(ref.name)
            self._dirty = True

    def set_node(self, ref: Ref) -> None:
        """Look again at a node."""
        if not self._loaded:
            return
        node = self._cluster.nodes.get(ref)
        if node is None:
            self.classes.drop_node(ref.name)
        else:
            self.classes.set_node(ref.name, node.labels, tuple(map(pack, node.addresses)))
        self._dirty = True

    def _load(self) -> None:
        """Take in all that is known."""
        cluster = self._cluster
        self._loaded = True
        for ref in cluster.nodes:
            self.set_node(ref)
        for likeness, group in cluster.peers.groups.items():
            self.classes.fill(likeness, [each for packed in group.addresses.values() for each in split(packed)])
        for namespace in cluster.namespaces.values():
            self.classes.set_namespace(namespace.ref.name, namespace.labels)
        policies: list[Policy] = [*cluster.policies.values(), *cluster.cluster_policies.values()]
        for policy in policies:
            self.subjects.set_policy(policy.ref, policy)
        for ref in cluster.pods:
            self.set_pod(ref)
        self._dirty = True

    # What was there when we came

    def read_back(self, *, keep: bool) -> None:
        """Adopt what the tables hold; what nobody knows stays with ``keep``."""
        for table in self.tables.values():
            table.read_back(keep=keep)
        self._names.read_back(self.entries.names)
        self.generations.read_back()
        if self._loaded:
            return
        self._load()
        had = self.peers.classes()
        blocks = {unpack_block(key): number for key, number in self.blocks.classes().items()}
        numbers = {place_of(key).number for key in self.rules.have}
        self.classes.cells.skip({*had.values(), *blocks.values(), *numbers})
        self._prepare((had, blocks))

    def know_all(self) -> None:
        """Forget what was kept because somebody might want it."""
        for table in self.tables.values():
            table.know_all()
        self._dirty = True

    @property
    def tables(self) -> dict[str, PeerTable | Lazy]:
        """The tables that are compared entry by entry."""
        return {"peers": self.peers, "peer_blocks": self.blocks, "rules": self.rules, "rule_ports": self.ports}

    @property
    def names(self) -> Mapping[int, str]:
        """The names of all rules that decide anything."""
        return self.entries.names

    # What is wanted

    def prepare(self) -> None:
        """Find what follows from all that came in; nothing is written."""
        if self._dirty and self._loaded:
            self._prepare(None)

    def _prepare(self, found: Found | None) -> None:
        self._dirty = False
        self.subjects.settle()
        for ref in self.subjects.changed:
            self._regroup(ref)
        self.subjects.changed = {}
        again = {group: None for ref in self._again for group in self.regimes.groups_of(ref)} | self._back
        again |= dict.fromkeys(self.regimes.naming(self._named) if self._named else ())
        self._again, self._named, self._back = {}, set(), {}
        for group in again:
            self.regimes.renew(group, self.subjects.policies(self.regimes.subjects[group]))
        settled = self.regimes.settle(found)
        for number, past in (settled.gone | settled.changed).items():
            if past:
                self._past[number] = past | self._past.get(number, NONE)
        for address, number in settled.addresses.items():
            self.peers.place(address, number or None)
        for block, number in settled.blocks.items():
            self.blocks.place(block.key, number or None)
        self._names.change(self.entries.changed_names())

    def _regroup(self, ref: Ref) -> None:
        subject = self.subjects.subject(ref)
        if subject is None:
            self._members.place(ref, NOBODY)
            return
        known = subject.id in self.regimes.subjects
        if not known:
            self.regimes.add(subject, self.subjects.policies(subject))
        if self._members.place(ref, subject.id) and known:
            self._back[subject.id] = None

    def group(self, ref: Ref, current: int | None) -> int:
        """Return the group that a pod is to have in the table now; ``current`` is what it has, None: it is new."""
        return self._members.group(ref, current)

    def pods_of(self) -> Mapping[int, set[Ref]]:
        """Return the groups that pods are to have, and which pods."""
        return self._members.of

    def enforced(self, ref: Ref) -> bool:
        """Say whether a policy is as the last version that came in says, for all pods of this node."""
        groups = self.regimes.groups_of(ref)
        return self._loaded and not self._dirty and ref not in self._again and self._members.have(groups)

    def behind(self) -> set[Ref]:
        """Return the policies that are not as their last version says, be it for want of room."""
        if not self._loaded or self._dirty:
            return {*self._cluster.policies, *self._cluster.cluster_policies}
        here = self.regimes.subjects
        return {*self._again, *(ref for group in self._members.late(here) for ref in here[group].policies)}

    # The order of writes

    def write(self, pods: Mapping[bytes, bytes] | None, settle_pods: Callable[[], Mapping[bytes, bytes]]) -> None:
        """Write all that follows. ``pods`` is the table (None: not known), ``settle_pods`` brings it in line."""
        self.prepare()
        flips = self._members.waiting
        if not flips and all(table.settled for table in self.tables.values()) and not self.generations.open:
            if self.tidy_at is None and (self.regimes.idle(()) or self._names.waiting):
                self._end()
            return
        self._members.unready = EVERY  # should anything fail, pods stay where they are until all peers have moved
        self._names.write(self.entries.names)
        with contextlib.suppress(DoesNotFit):
            self.ports.write(delete=False)
        seen = pods if pods is not None else {}
        seated = self._look(pods)
        self.rules.seen_groups = seated.groups if pods is not None else EVERY
        self.rules.hold(self.ports.unfit)
        self.ports.led_to = self.rules.led_to()
        rules = self.rules.pending() or self.rules.stirring()
        if not (flips or self.peers.moves() or self.blocks.moves() or rules):
            self._judge_ready()
            self._end()
            return
        moving = self._members.moving(seen)
        ways = Ways(
            self.rules, self._concerned, self._is_seen, self.classes.cells.fresh, leaving(moving), partial(owners, seen)
        )
        meanwhile = Meanwhile(ways, steps(self.peers, self.blocks) if any(self.rules.seen_groups) else ())
        self.regimes.detours = meanwhile.targets
        stirs = moving or self.peers.moves() or self.blocks.moves() or self.rules.stirring()
        meanwhile.begin()
        try:
            self._move(seated.interfaces if stirs else frozenset())
            meanwhile.change()
            self._hold_back()
            self._change(seen, settle_pods)
        finally:
            meanwhile.end()
        if meanwhile.detours:
            self.regimes.detours = {}
            self.generations.part()
            move(self.peers, self.blocks, self.generations.part)
            self._hold_back()
            self._judge_ready()
        self._members.strangers = False
        self._end()

    def _move(self, stirred: frozenset[int]) -> None:
        """Let all move to other classes; flows of the pods with these interfaces are judged again.

        Which pods ask of whom could be told apart, but who leaves falls back on his block, and whoever takes the
        address comes from there: a flow that is judged once more costs less than one that is not.
        """
        self.rules.write_phase(Phase.UNSEEN)
        self._lacking = {
            place.number
            for place, _ in self.rules.pending()
            if place.group in self.rules.seen_groups and place.number and not self._is_seen(place.number)
        }
        self.generations.begin(stirred)
        move(self.peers, self.blocks, self.generations.part)

    def _change(self, pods: Mapping[bytes, bytes], settle_pods: Callable[[], Mapping[bytes, bytes]]) -> None:
        """Let groups say what they are to say once nobody is about to leave them, and pods get those that do."""
        members, rules = self._members, self.rules
        round_before = None
        try:
            while True:
                moving = members.moving(pods)
                if moving and moving == round_before and not members.go_round(rules, moving):
                    moving = set()  # no room to do so
                rules.left = leaving(moving)
                for phase in (Phase.CLASSES, Phase.EVERYBODY, Phase.ALIKE):
                    just_left = phase == Phase.CLASSES and round_before is not None and not rules.settled
                    if just_left or (phase != Phase.ALIKE and rules.stirring()):
                        self.generations.part()
                    rules.write_phase(phase)
                self._judge_ready()
                if members.waiting or moving:
                    pods = settle_pods()
                    rules.seen_groups = self._look(pods).groups
                    members.note()
                if not rules.left:
                    return
                round_before = moving
        finally:
            members.go_straight(rules)

    def _end(self) -> None:
        self.generations.finish()
        self.problems = without_room(self.tables, self.regimes, self.pods_of(), self._apart)
        if self.tidy_at is None:
            self._plan()

    def _plan(self) -> None:
        """Plan to remove what nobody needs by now."""
        ripe = [table.ripen() for table in (self.rules, self.ports)]
        asked = self.regimes.idle(self.rules.held)
        left = any(ripe) or asked or bool(self._leaving()) or self._names.waiting or self.blocks.untidy
        self.tidy_at = self._clock() + GRACE_S if left else None

    def _leaving(self) -> list[int]:
        """Return the groups that no pod has, or is to have."""
        there = self.rules.seen_groups
        return [group for group in self.regimes.subjects.keys() - self._members.of.keys() if group not in there]

    def tidy(self, pods: Mapping[bytes, bytes] | None, settle_pods: Callable[[], Mapping[bytes, bytes]]) -> None:
        """Remove what nobody needs."""
        self.rules.write_phase(Phase.REST)
        with contextlib.suppress(DoesNotFit):  # of what had no room before
            self.ports.write(put=False)
        self._names.remove(self.entries.names)
        self.tidy_at = None
        self._past = {}
        if pods is not None:
            self.rules.seen_groups = self._look(pods).groups
            for group in self._leaving():
                self.regimes.remove(group)
            self.regimes.forget_former(self.rules.held)
            self._dirty = True
            self.blocks.tidy()
        self.write(pods, settle_pods)
        if self.tidy_at is None:
            self._plan()

    def _hold_back(self) -> None:
        """Leave groups alone that would let somebody do too much who could not move."""
        self.rules.held |= self.regimes.too_open(stuck(self.peers, self.blocks))
        self.ports.led_to = self.rules.led_to()

    def _judge_ready(self) -> None:
        """Find the groups that pods may not have yet."""
        self._apart = self.regimes.telling_apart(stuck(self.peers, self.blocks))
        self._members.barred = self._apart | self.rules.held
        pending = {place.group for place, _ in self.rules.pending()}
        self._members.unready = pending | self.rules.stirring() | self._members.barred

    def _is_seen(self, number: int) -> bool:
        return number in self.peers.uses or number in self.blocks.uses

    def _is_ready(self, number: int) -> bool:
        return number not in self._lacking

    def _concerned(self, before: int, now: int) -> Iterable[tuple[int, int]]:
        if self._members.strangers:
            groups = self.rules.seen_groups | self.regimes.subjects.keys()
            return [(group, way) for group in groups for way in abi.Direction]
        answers: set[int] = set()
        for number in (before, now):
            if number == NOBODY:
                continue
            cell = self.classes.cells.by_number.get(number)
            past = self._past.get(number)
            if cell is None and past is None:  # somebody else's: he may have asked anything
                return [(group, way) for group in self.regimes.subjects for way in abi.Direction]
            answers.update(cell.answers if cell else (), past or ())
        return self.regimes.concerned(answers)
