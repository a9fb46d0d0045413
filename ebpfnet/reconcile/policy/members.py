"""Pods of this node by group: which one each is to have, and which of them have another one in the table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.pods import id_of
from ebpfnet.model.facts import Ref
from ebpfnet.reconcile.policy.cells import NOBODY
from ebpfnet.reconcile.policy.entries import rule_key
from ebpfnet.reconcile.policy.tables import Phase, RuleTable, place_of

CLOSED = abi.identify("group of pods whose rules are not there yet")
"""A group without rules: nothing passes."""
ID, GROUP = slice(16, 24), slice(24, 32)
"""Of a value of ``pods``."""


class Moving(NamedTuple):
    """A pod, by its id, that is to have another group."""

    pod: int
    before: int
    now: int


class Members:
    """All pods that a policy selects, and those that none selects any more."""

    def __init__(self) -> None:
        self.of: dict[int, set[Ref]] = {}
        """Pods that are to have a group, where there are any."""
        self.waiting: dict[Ref, None] = {}
        """Pods whose group may not be in the table yet."""
        self.unready: Collection[int] = ()
        """Groups that no pod may get now: what they say is not all in the tables."""
        self.barred: Collection[int] = ()
        """Those of them that what has no room keeps as they are."""
        self.strangers = True
        """Whether nobody knows yet why pods and rules are in the tables that another agent left."""
        self._groups: dict[Ref, int] = {}
        self._rounds: dict[int, tuple[int, dict[bytes, bytes]]] = {}  # groups that stand in for others, and their rules

    def place(self, ref: Ref, group: int) -> bool:
        """Take in which group a pod is to have (NOBODY: none); returns whether it is the first one there."""
        before = self._groups.pop(ref, NOBODY)
        if before:
            self.of[before].discard(ref)
            if not self.of[before]:
                del self.of[before]
        self.waiting[ref] = None
        if not group:
            return False
        first = group not in self.of
        self._groups[ref] = group
        self.of.setdefault(group, set()).add(ref)
        return first

    def group(self, ref: Ref, current: int | None) -> int:
        """Return the group that a pod is to have in the table now; ``current`` is what it has, None: it is new."""
        wanted = self._groups.get(ref, NOBODY)
        if wanted in {NOBODY, current} or wanted not in self.unready:
            return wanted
        if wanted in self._rounds:
            return self._rounds[wanted][0]
        return CLOSED if current is None else current

    def have(self, groups: Iterable[int]) -> bool:
        """Say whether the pods that are to have these groups do, and the groups say what they are to say."""
        return not self.late(groups)

    def late(self, groups: Iterable[int]) -> list[int]:
        """Return those of groups that pods wait for, or that do not say yet what they are to say."""
        waiting = {self._groups.get(each) for each in self.waiting}
        return [each for each in groups if each in waiting or each in self.unready]

    def moving(self, table: Mapping[bytes, bytes]) -> set[Moving]:
        """Return the pods that have another group than they are to have, at one of their addresses."""
        known = (*self.waiting, *self._groups) if self.strangers else self.waiting
        if not known and not self.strangers:
            return set()
        wanted = {id_of(ref): self._groups.get(ref, NOBODY) for ref in known}
        found = set()
        for value in table.values():
            pod, group = int.from_bytes(value[ID], "little"), group_of(value)
            now = wanted.get(pod, NOBODY if self.strangers else group)
            if now != group:
                found.add(Moving(pod, group, now))
        return found

    def go_round(self, rules: RuleTable, moving: Collection[Moving]) -> bool:
        """Let pods that wait for one another to leave get groups that stand in for those that they are to have.

        These say at once what is right, for nobody has them yet. Returns whether there are any, and there was room.
        """
        left = leaving(moving).keys() - rules.held - self._rounds.keys()
        rounds = {}
        waited_for = {each.now for each in moving if each.now in left and each.now in self.unready}
        for group in waited_for.difference(self.barred):
            number = abi.identify(f"in the place of group {group}")
            keys = [key for key in rules.want if place_of(key).group == group]
            rounds[group] = number, {rule_key(number, *place_of(key)[1:]): rules.want[key] for key in keys}
        if not rounds or sum(len(entries) for _, entries in rounds.values()) > rules.room:
            return False
        self._rounds |= rounds
        for _, entries in rounds.values():
            for key, value in entries.items():
                rules.ask(key, value)
        rules.write_phase(Phase.UNSEEN)
        return True

    def go_straight(self, rules: RuleTable) -> None:
        """Let no group stand in for another one from now on."""
        for _, entries in self._rounds.values():
            for key in entries:
                rules.ask(key, None)
        self._rounds = {}

    def note(self) -> None:
        """Take in that the table was brought in line: as far as groups are ready."""
        for ref in list(self.waiting):
            if self._groups.get(ref, NOBODY) not in self.unready:
                del self.waiting[ref]


def group_of(value: bytes) -> int:
    """Return the group that is in a value of ``pods``."""
    return int.from_bytes(value[GROUP], "little")


def owners(table: Mapping[bytes, bytes], keys: Iterable[bytes]) -> set[int]:
    """Return whose addresses these are, by id; NOBODY: of no pod of this node."""
    found = (table.get(key) for key in keys)
    return {int.from_bytes(value[ID], "little") if value else NOBODY for value in found}


def leaving(moving: Iterable[Moving]) -> dict[int, set[int]]:
    """Return the pods that are about to leave each group."""
    found: dict[int, set[int]] = {}
    for each in moving:
        if each.before != NOBODY:
            found.setdefault(each.before, set()).add(each.pod)
    return found
