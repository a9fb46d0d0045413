"""Numbers of cells: what answers alike shares one, and keeps it when all of it changes its answers alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ebpfnet.compile.policy.predicates import Predicate
from ebpfnet.reconcile.policy.blocks import Block
from ebpfnet.reconcile.policy.questions import NONE, Answers

NOBODY = 0
"""The class of all who answer nothing with yes."""


class Cell:
    """Addresses and blocks that answer alike; ``count`` says how many."""

    __slots__ = ("answers", "count", "meaning", "number")

    def __init__(self, answers: Answers, number: int) -> None:
        self.answers = answers
        self.meaning: frozenset[Predicate] | None = None  # the same in full, once somebody asked
        self.number = number
        self.count = 0


@dataclass(slots=True)
class Shift:
    """Some that answered one thing answer another now: addresses, or a block."""

    before: Answers
    now: Answers
    who: Collection[bytes] | Block

    @property
    def count(self) -> int:
        """How many they are."""
        return 1 if isinstance(self.who, Block) else len(self.who)


@dataclass(slots=True)
class Settled:
    """What came of it: numbers of addresses and blocks (NOBODY's: no entry), and cells that are new or have changed."""

    addresses: dict[bytes, int] = field(default_factory=dict)
    blocks: dict[Block, int] = field(default_factory=dict)
    changed: dict[int, Answers] = field(default_factory=dict)
    """Number of a cell to what it answered before; nothing: it is new."""
    gone: dict[int, Answers] = field(default_factory=dict)
    """The same of cells that are no more."""


Found = tuple[Mapping[bytes, int], Mapping[Block, int]]
"""The numbers that addresses and blocks had in the tables when we came."""


class Cells:
    """All cells that somebody is in."""

    def __init__(self) -> None:
        self.by_number: dict[int, Cell] = {}
        self._by_answers: dict[Answers, Cell] = {}
        self._saying: dict[int, dict[Cell, None]] = {}  # by one of their answers
        self._next = 1

    def number(self, answers: Answers) -> int:
        """Return the number of a cell; NOBODY's if there is none."""
        cell = self._by_answers.get(answers)
        return cell.number if cell else NOBODY

    def saying(self, answers: Iterable[int]) -> dict[int, Cell]:
        """Return the cells with one of these answers, by number."""
        return {cell.number: cell for answer in answers for cell in self._saying.get(answer, ())}

    def skip(self, numbers: Iterable[int]) -> None:
        """Never give these numbers to a new cell."""
        self._next = max([self._next, *(number + 1 for number in numbers)])

    def fresh(self) -> int:
        """Return a number that no cell has or had, and that none will have."""
        self._next += 1
        return self._next - 1

    def settle(self, shifts: Iterable[Shift], found: Found | None) -> Settled:
        """Number anew who answers otherwise; with ``found`` by what they had in the tables."""
        shifts = [each for each in shifts if each.before != each.now]
        settled = Settled()
        old = {each.before: self.number(each.before) for each in shifts}
        pending = self._count(shifts)
        claims = self._found(shifts, *found) if found else self._emptied(pending)
        for key, number in self._award(claims).items():
            before = self.by_number.get(number)
            settled.changed[number] = before.answers if before else NONE
            if before:
                self._remove(before)
            self._add(key, number, pending.pop(key))
        for key, who in pending.items():
            settled.changed[self._next] = NONE
            self._add(key, self._next, who)
            self._next += 1
        for key, number in old.items():
            cell = self._by_answers.get(key)
            if cell is not None and not cell.count:
                self._remove(cell)
                settled.gone[number] = key
        for each in shifts:
            number = self.number(each.now)
            if number != old[each.before]:
                _tell(each, number, settled)
        return settled

    def _count(self, shifts: Iterable[Shift]) -> dict[Answers, Counter[Answers]]:
        """Move the counts; returns the cells that are new, and how many come from which."""
        pending: dict[Answers, Counter[Answers]] = {}
        for each in shifts:
            if each.before:
                self._by_answers[each.before].count -= each.count
            if not each.now:
                continue
            cell = self._by_answers.get(each.now)
            if cell is not None:
                cell.count += each.count
            else:
                pending.setdefault(each.now, Counter())[each.before] += each.count
        return pending

    def _emptied(self, pending: Mapping[Answers, Counter[Answers]]) -> list[tuple[int, int, Answers]]:
        """Return who may go on with the number of a cell that nobody is in any more: those who all come from there.

        Others could only join them before what is said of that number is said of both, and so would meet what was said.
        """
        claims = []
        for key, who in pending.items():
            if len(who) > 1:
                continue
            for before, count in who.items():
                cell = self._by_answers.get(before)
                if cell is not None and not cell.count:
                    claims.append((count, cell.number, key))
        return claims

    def _found(
        self, shifts: Iterable[Shift], addresses: Mapping[bytes, int], blocks: Mapping[Block, int]
    ) -> list[tuple[int, int, Answers]]:
        """Return who may go on with a number that is in the tables."""
        counts: Counter[tuple[int, Answers]] = Counter()
        for each in shifts:
            if isinstance(each.who, Block):
                had = [blocks.get(each.who, NOBODY)]
            else:
                had = [addresses.get(address, NOBODY) for address in each.who]
            for number in had if each.now else ():
                counts[number, each.now] += 1
        return [(count, number, key) for (number, key), count in counts.items() if number != NOBODY]

    def _award(self, claims: list[tuple[int, int, Answers]]) -> dict[Answers, int]:
        """Give every number to one cell, and every cell one number: most addresses first."""
        awarded: dict[Answers, int] = {}
        taken: set[int] = set()
        for _, number, key in sorted(claims, key=lambda each: (-each[0], each[1])):
            if number not in taken and key not in awarded and key not in self._by_answers:
                awarded[key] = number
                taken.add(number)
        return awarded

    def _add(self, key: Answers, number: int, who: Counter[Answers]) -> None:
        cell = self._by_answers[key] = self.by_number[number] = Cell(key, number)
        cell.count = who.total()
        for answer in key:
            self._saying.setdefault(answer, {})[cell] = None

    def _remove(self, cell: Cell) -> None:
        del self._by_answers[cell.answers]
        del self.by_number[cell.number]
        for answer in cell.answers:
            same = self._saying[answer]
            del same[cell]
            if not same:
                del self._saying[answer]


def _tell(shift: Shift, number: int, settled: Settled) -> None:
    if isinstance(shift.who, Block):
        settled.blocks[shift.who] = number
    else:
        settled.addresses.update(dict.fromkeys(shift.who, number))
