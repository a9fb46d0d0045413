"""The tables that policies are in, each compared entry by entry, and which of their entries a packet can meet."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.policy.blocks import Block, block_at
from ebpfnet.reconcile.policy.cells import NOBODY
from ebpfnet.reconcile.policy.entries import rule_key
from ebpfnet.reconcile.sets import DoesNotFit

_PORTS = slice(8, 16)  # of a value of ``rules``, and (from 0) of a key of ``rule_ports``


class Place(NamedTuple):
    """Where a rule is: of which group, class and direction."""

    group: int
    number: int
    direction: int


def place_of(key: bytes) -> Place:
    """Return what a key of ``rules`` means."""
    return Place(*abi.RuleKey.layout.unpack(key))


def number_of(value: bytes | None) -> int:
    """Return the class that a value of ``peers`` or ``peer_blocks`` is; no entry is nobody's."""
    return int.from_bytes(value, "little") if value else NOBODY


class _Every(set[int]):
    """All numbers there are."""

    def __contains__(self, _: object) -> bool:
        return True


EVERY = _Every()


Pairs = Collection[tuple[int, int]]
"""Classes, two at a time."""


class Move(NamedTuple):
    """An entry of ``peers`` or ``peer_blocks`` that is to be of another class."""

    key: bytes
    before: int
    now: int


class PeerTable(Keyed):
    """``peers``: what is asked for is written once the rules of its class are there (``ready``)."""

    def __init__(self, table: Table, ready: Callable[[int], bool]) -> None:
        super().__init__(table)
        self.uses: dict[int, int] = {}
        """How many entries of the table are of a class."""
        self._around: Collection[Block] = ()
        self._ready = ready
        self._values: dict[int, bytes] = {}

    def place(self, key: bytes, number: int | None) -> None:
        """Want an entry of a class, or with None no entry."""
        if number is None:
            self.ask(key, None)
            return
        value = self._values.get(number)
        if value is None:
            value = self._values[number] = number.to_bytes(4, "little")
        self.ask(key, value)

    def forget(self, number: int) -> None:
        """Let go of a class that is no more."""
        self._values.pop(number, None)

    def classes(self) -> dict[bytes, int]:
        """Return the class of every entry in the table."""
        return {key: number_of(value) for key, value in self.have.items()}

    def read_back(self, *, keep: bool) -> None:
        """Look at the whole table; what nobody wants stays with ``keep``."""
        self.uses = {}
        super().read_back(keep=keep)

    def moves(self) -> list[Move]:
        """Return the entries that are to change."""
        pairs = ((key, self.have.get(key), self.want.get(key)) for key in self._dirty if self._stirs(key))
        return [Move(key, number_of(before), number_of(now)) for key, before, now in pairs]

    def _stirs(self, key: bytes) -> bool:
        return self.have.get(key) != self.want.get(key) and key not in self._unknown

    def is_full_for(self, key: bytes) -> bool:
        """Say whether a key found no room last time, and none has been made since."""
        return key in self.unfit and self.room < 1

    def lacking(self) -> list[tuple[bytes, int]]:
        """Return what has no entry and shall have one, and of which class."""
        return [(key, number_of(self.want[key])) for key in self._missing()]

    def _may(self, key: bytes) -> bool:
        return super()._may(key) and self._ready(number_of(self.want[key]))

    def _leaving(self) -> list[bytes]:
        leaving, around = super()._leaving(), self._around
        return [key for key in leaving if not any(each.holds(block_at(key)) for each in around)] if around else leaving

    def _set(self, key: bytes, value: bytes | None) -> None:
        before = self.have.get(key)
        super()._set(key, value)
        if before == value:
            return
        if before is not None:
            number = number_of(before)
            self.uses[number] -= 1
            if not self.uses[number]:
                del self.uses[number]
        if value is not None:
            number = number_of(value)
            self.uses[number] = self.uses.get(number, 0) + 1

    def enter(self) -> None:
        """Write what is wanted; what nobody wants stays, and what has no room is for ``write_all``."""
        with contextlib.suppress(DoesNotFit):
            self.write(delete=False)

    def leave_within(self, blocks: Collection[Block]) -> None:
        """Write everything; who is in one of ``blocks``, which are not what they shall be, keeps his entry."""
        self._around = blocks  # else he would be taken for who is around them
        self._write_all()

    def _write_all(self) -> None:
        """Write everything; what has no room is in ``unfit``."""
        with contextlib.suppress(DoesNotFit):
            self.write()
        if not self._dirty:
            self.unfit = {}


class Phase(enum.Enum):
    """What of the rules may be written now."""

    UNSEEN = 1
    """What no packet can meet: of groups that no pod has, or classes that nobody is in."""
    CLASSES = 2
    EVERYBODY = 3
    """What is said of who is in no class that has a rule; after all that shall differ from it."""
    ALIKE = 4
    """What goes because it is said of everybody now."""
    REST = 5


class Lazy(Keyed):
    """A table whose entries go a moment after nobody wants them: a program that runs may still come to them."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self._ripe: set[bytes] = set()

    def ripen(self) -> bool:
        """Let what nobody wants now be removed next time; returns whether there is anything."""
        gone = {key for key in self._dirty if key not in self.want and key in self.have} - self._unknown
        self._ripe = {key for key in gone if not self._stays(key)}
        return bool(self._ripe)

    def _stays(self, _: bytes) -> bool:
        """Say whether what nobody wants is still used by what could not be written."""
        return False

    def _may_go(self, key: bytes) -> bool:
        return super()._may_go(key) and key in self._ripe and not self._stays(key)


class PortTable(Lazy):
    """``rule_ports``. ``led_to``: what rules lead to that others could not take the place of."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.led_to: Collection[bytes] = ()

    def _stays(self, key: bytes) -> bool:
        return key[:8] in self.led_to


class RuleTable(Lazy):
    """``rules``, written in phases. ``seen_groups``, ``seen_class``: what packets can meet."""

    def __init__(self, table: Table, seen_class: Callable[[int], bool]) -> None:
        super().__init__(table)
        self.phase = Phase.REST
        self.seen_groups: Collection[int] = ()
        self.held: set[int] = set()
        """Groups that have no room, or whose peers have none: nothing of theirs is written, and nothing goes."""
        self.left: Collection[int] = ()
        """Groups that pods are about to leave: what they say to packets stays."""
        self._seen_class = seen_class

    def effective(self, group: int, number: int, direction: int) -> tuple[bytes | None, bytes | None]:
        """Return what is said of a class: in the table, and as wanted (the same for a group that nobody wants)."""
        key, everybody = rule_key(group, number, direction), rule_key(group, NOBODY, direction)
        before = self.have.get(key) or self.have.get(everybody)
        if everybody not in self.want:
            return before, before
        return before, self.want.get(key) or self.want.get(everybody)

    def seen(self, place: Place) -> bool:
        """Say whether a packet can meet a rule."""
        return place.group in self.seen_groups and (place.number == NOBODY or self._seen_class(place.number))

    def pending(self) -> list[tuple[Place, bytes]]:
        """Return where what is wanted is not in the table, and its value."""
        return [
            (place_of(key), self.want[key])
            for key in self._dirty
            if key in self.want and self.have.get(key) != self.want[key]
        ]

    def stirring(self) -> set[int]:
        """Return the groups whose packets will be told something else."""
        found = set()
        for key in self._dirty:
            place = place_of(key)
            if place.group in found or place.group in self.held or not self.seen(place):
                continue
            wanted = rule_key(place.group, NOBODY, place.direction) in self.want
            if wanted and self.have.get(key) != self.want.get(key):
                found.add(place.group)
        return found

    def hold(self, ports: Iterable[bytes]) -> None:
        """Find the groups that have no room, here or in ``rule_ports`` (keys that have none there): new ones first."""
        lost = {key[:8] for key in ports}
        needs: dict[int, int] = {}
        self.held = set()
        for place, value in self.pending():
            needs[place.group] = needs.get(place.group, 0) + (rule_key(*place) not in self.have)
            if value[_PORTS] in lost:
                self.held.add(place.group)
        room = self.room
        if sum(needs.values()) <= room:
            return
        for group in sorted(needs, key=lambda each: (each not in self.seen_groups, needs[each], each)):
            if needs[group] > room:
                self.held.add(group)
            else:
                room -= needs[group]

    def led_to(self) -> set[bytes]:
        """Return the ranges of ports that held rules lead to."""
        if not self.held:
            return set()
        return {value[_PORTS] for key, value in self.have.items() if place_of(key).group in self.held}

    def _stays(self, key: bytes) -> bool:
        return place_of(key).group in self.held

    def write_phase(self, phase: Phase) -> None:
        """Write what may be written in a phase; raises ``TableError``."""
        self.phase = phase
        try:
            puts = phase in {Phase.UNSEEN, Phase.CLASSES, Phase.EVERYBODY}
            self.write(put=puts, delete=phase in {Phase.UNSEEN, Phase.ALIKE, Phase.REST})
        except DoesNotFit:
            self.unfit = {}

    def _may(self, key: bytes) -> bool:
        if key not in self.want:
            return False
        place = place_of(key)
        if place.group in self.held or (place.group in self.left and self.phase != Phase.UNSEEN):
            return False
        match self.phase:
            case Phase.UNSEEN:
                return not self.seen(place)
            case Phase.CLASSES:
                return place.number != NOBODY
            case _:
                return True

    def _may_go(self, key: bytes) -> bool:
        if self.phase == Phase.REST or key in self._unknown:
            return super()._may_go(key)
        place = place_of(key)
        if place.group in self.held or rule_key(place.group, NOBODY, place.direction) not in self.want:
            return False
        if place.group not in self.seen_groups:  # it comes back before all of it was gone
            return True
        return self.phase == Phase.ALIKE and place.group not in self.left and self.seen(place)
