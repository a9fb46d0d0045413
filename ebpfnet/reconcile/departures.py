"""Backends that left, and endpoint sets that are no more, told to the datapath at once (``departed``, ``turn``).

A sweep reads every flow, so sweeps keep a distance from each other. Until the next one has looked at all flows, a
backend that left stands in ``departed``, and a flow asks there once after each announcement, at its next packet
(``bpf/lib/flow.h left_behind``). What comes back is let off before anything is announced; a flow that began meanwhile
is of the current turn, and does not ask.

What is not announced, because it is too much at a time or because the table is full or fails, the sweep finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.abi import Departure
from ebpfnet.compile.endpoints import RECORD, Piece
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.diff import records, run_diff
from ebpfnet.reconcile.routes import Fate

AT_A_TIME = 1024
ROOM = abi.TABLES["departed"].max_entries // 2
_EVERYONE = bytes(RECORD)
_TURNS = 1 << 32

Left = tuple[int, bytes]
"""An endpoint set, and a packed ``Backend``; one of zeros: the set itself."""


def _key(left: Left) -> bytes:
    set_id, backend = left
    return set_id.to_bytes(8, "little") + backend + bytes(4)


class Departures:
    """What may have left or come back since it was announced last, and what stands in the table."""

    def __init__(self) -> None:
        self._asked: dict[Left, None] = {}
        self._gone_sets: dict[int, None] = {}
        self._held: dict[Left, int] = {}  # and the turn in which each was put there
        self._turn = 0

    # What happens

    def note(self, sets: Iterable[int], before: Piece | None, now: Piece | None) -> None:
        """Take in that a slice says something else of the endpoints of these sets."""
        for backend in _departed(before, now):
            if len(self._asked) < AT_A_TIME:
                self._asked.update(dict.fromkeys((set_id, backend) for set_id in sets))
        if self._held and now is not None:
            there = {*records(now.listed)}
            self._asked.update(dict.fromkeys(left for left in self._held if left[1] in there))

    def leave(self, set_id: int) -> None:
        """Take in that the kernel does not have an endpoint set any more."""
        if len(self._gone_sets) < AT_A_TIME:
            self._gone_sets[set_id] = None

    def come(self, set_ids: Iterable[int]) -> None:
        """Take in that the kernel has these sets again, or for the first time."""
        for set_id in set_ids:
            self._gone_sets.pop(set_id, None)
            if (set_id, _EVERYONE) in self._held:
                self._asked[set_id, _EVERYONE] = None

    # What is written

    def reset(self, tables: Mapping[str, Table]) -> None:
        """Forget what an earlier agent announced: the first sweep looks at all flows. Raises ``TableError``."""
        tables["departed"].delete_batch([key for key, _ in tables["departed"].items()])
        self._turn = int.from_bytes(tables["turn"].get(bytes(4)) or b"", "little")

    def announce(self, tables: Mapping[str, Table], fate: Callable[[bytes, bytes], Fate]) -> None:
        """Let off what came back, and tell what left; ``fate`` is that of a set's backend. Raises ``TableError``."""
        if not self._asked and not self._gone_sets:
            return
        found = {left: _how(left, fate) for left in self._asked}
        back = [left for left, how in found.items() if how is None and left in self._held]
        if back:
            tables["departed"].delete_batch([_key(left) for left in back])
        for left in back:
            del self._held[left]
        told = {left: how for left, how in found.items() if how is not None}
        told |= dict.fromkeys(((set_id, _EVERYONE) for set_id in self._gone_sets), Departure.UNFIT)
        self._asked, self._gone_sets = {}, {}
        if not told or len(told) + len(self._held) > ROOM:
            return
        self._turn = (self._turn + 1) % _TURNS
        self._held |= dict.fromkeys(told, self._turn)
        tables["departed"].put_batch(
            [_key(left) for left in told], [how.to_bytes(4, "little") for how in told.values()]
        )
        tables["turn"].put(bytes(4), self._turn.to_bytes(4, "little"))

    def mark(self) -> int:
        """Return what ``forget`` wants of who begins to look at all flows."""
        return self._turn

    def forget(self, tables: Mapping[str, Table], mark: int) -> None:
        """Remove what was announced before all flows were looked at. Raises ``TableError``."""
        done = [left for left, turn in self._held.items() if (mark - turn) % _TURNS < _TURNS // 2]
        if done:
            tables["departed"].delete_batch([_key(left) for left in done])
        for left in done:
            del self._held[left]


_HOW = {Fate.LISTED: Departure.UNFIT, Fate.GONE: Departure.GONE}


def _how(left: Left, fate: Callable[[bytes, bytes], Fate]) -> Departure | None:
    """Return how a backend left; None: it may well be chosen. Of a set itself it is asked only when that is back."""
    set_id, backend = left
    return None if backend == _EVERYONE else _HOW.get(fate(set_id.to_bytes(8, "little"), backend))


def _serving(piece: Piece) -> bytes:
    return piece.ready + piece.others.leaving + piece.others.serving


def _departed(before: Piece | None, now: Piece | None) -> list[bytes]:
    """Return the backends that served before and do not now, or were listed before and are not now."""
    if before is None:
        return []
    if now is None:
        return records(before.listed)
    gone, _ = run_diff(_serving(before), _serving(now))
    if before.others.unready:
        unlisted, _ = run_diff(before.others.unready, now.listed)
        gone += unlisted
    return gone
