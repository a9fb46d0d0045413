"""What slices say, by service port and family: the pieces that endpoint sets are made of.

A group is the id of a port's set of all endpoints. Its pieces are held as they were compiled, one for each slice; the
sets of a group are unions of some of their runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from ebpfnet.abi import SetFlag
from ebpfnet.compile import maglev
from ebpfnet.compile.endpoints import RECORD, Choice, Piece, Place, choose, choose_local, chosen, placed
from ebpfnet.compile.services import Wanted
from ebpfnet.compile.shares import Shares, Step
from ebpfnet.model.facts import Ref
from ebpfnet.reconcile.diff import find, records


class Fed(NamedTuple):
    """A group that a slice feeds, and the slice's piece of it before and now."""

    group: int
    slice: Ref
    before: Piece | None
    now: Piece | None

    @property
    def loses(self) -> bool:
        """Whether flows may lead to an endpoint of the slice that new ones did not, and that it does not have now."""
        before, now = self.before, self.now
        if before is None or now is None:
            return before is not None
        hidden = bool(before.hints) or len(now.ready) < len(before.ready)
        return (any(before.others) and before.others != now.others) or (hidden and before.ready != now.ready)


class Made(NamedTuple):
    """What an endpoint set should be. ``table``: backends stand in it more than once, and their places matter."""

    choice: Choice
    run: bytes
    flags: int
    table: bool
    step: Step | None = None
    """How a table follows from the one made before."""


class Groups:
    """The pieces of all groups, and where this node is."""

    def __init__(self, node: str) -> None:
        self.place = Place(node)
        self._pieces: dict[int, dict[Ref, Piece]] = {}
        self._fed_by: dict[Ref, tuple[int, ...]] = {}
        self._shares = Shares()

    def feed(self, ref: Ref, made: Mapping[int, Piece]) -> Iterator[Fed]:
        """Put a slice's pieces in place of what it fed before; yields the groups that changed."""
        for group in dict.fromkeys((*self._fed_by.get(ref, ()), *made)):
            piece = made.get(group)
            pieces = self._pieces.setdefault(group, {})
            before = pieces.pop(ref, None)
            if piece is not None:
                pieces[ref] = piece
            if not pieces:
                del self._pieces[group]
            if piece != before:
                yield Fed(group, ref, before, piece)
        if made:
            self._fed_by[ref] = tuple(made)
        else:
            self._fed_by.pop(ref, None)

    def move(self, zone: str) -> set[int]:
        """Be in another zone; returns the groups that this may concern."""
        if zone == self.place.zone:
            return set()
        self.place = self.place._replace(zone=zone)
        moved = set()
        for group, pieces in self._pieces.items():
            for ref, piece in pieces.items():
                if piece.hints:
                    pieces[ref] = placed(piece, self.place)
                    moved.add(group)
        return moved

    def pieces(self, group: int) -> Mapping[Ref, Piece]:
        """Return a group's pieces by slice."""
        return self._pieces.get(group, {})

    def choice(self, want: Wanted) -> Choice:
        """Return which endpoints a set has."""
        pieces = self.pieces(want.group).values()
        return choose_local(pieces) if want.local else choose(pieces)

    def is_table(self, want: Wanted) -> bool:
        """Say whether a set's backends are not all alike."""
        return bool(want.consistent) or any(piece.weight != 1 for piece in self.pieces(want.group).values())

    def made(self, want: Wanted, unknown: bytes = b"") -> Made:
        """Return what a set should be, with backends that no slice knows beside."""
        choice, table = self.choice(want), self.is_table(want)
        flags = SetFlag.CONSISTENT if want.consistent else SetFlag.WEIGHTED if table else 0
        pieces = self.pieces(want.group).values()
        if choice == Choice.ELSEWHERE and not unknown:
            return Made(choice, b"", flags | SetFlag.ELSEWHERE, table)
        if not table:
            return Made(choice, _union([*(chosen(piece, choice) for piece in pieces), unknown]), flags, table)
        weights = dict.fromkeys(records(unknown), 1)
        for piece in pieces:
            those = dict.fromkeys(_cut(chosen(piece, choice)), piece.weight)
            for record in those.keys() & weights.keys():
                those[record] = max(weights[record], piece.weight)
            weights |= those
        if not want.consistent:
            return Made(choice, maglev.weighted(weights), flags, table)
        run, step = self._shares.consistent(want.consistent, weights)
        return Made(choice, run, flags, table, step)

    def lists(self, group: int, backend: bytes) -> bool:
        """Say whether a slice knows a backend, whatever its conditions."""
        pieces = self.pieces(group).values()
        return self.serves(group, backend) or any(find(piece.others.unready, backend) >= 0 for piece in pieces)

    def serves(self, group: int, backend: bytes) -> bool:
        """Say whether a backend is ready, or serving all the same."""
        for piece in self.pieces(group).values():
            others = piece.others
            if any(find(run, backend) >= 0 for run in (piece.ready, others.leaving, others.serving) if run):
                return True
        return False


@lru_cache(1_024)
def _cut(run: bytes) -> tuple[bytes, ...]:
    """Return the records of a slice's run; kept, for few slices of a table change at once."""
    return tuple(records(run))


def _union(runs: Collection[bytes]) -> bytes:
    some = [run for run in runs if run]
    if len(some) < 2:
        return some[0] if some else b""
    joined = b"".join(some)
    parts = records(joined)
    once = dict.fromkeys(parts)
    return joined if len(once) == len(parts) else b"".join(once)


def without(run: bytes, known: Iterable[bytes]) -> bytes:
    """Return the records of a run that no other run has, each once."""
    there = {record for each in known for record in records(each)} | {bytes(RECORD)}
    return b"".join([record for record in dict.fromkeys(records(run)) if record not in there])
