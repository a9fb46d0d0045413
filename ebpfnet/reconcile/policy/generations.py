"""Generations of the pods' verdicts: a flow that was judged under another one is judged again at its next packet.

A generation is odd while what it stands for changes. So an agent that is killed on the way leaves the sign that flows
are still to be judged again, and the next one finishes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ebpfnet import abi
from ebpfnet.maps.table import Table

_MASK = 0xFFFFFFFF


class Generations:
    """``generations``. Methods raise ``TableError``; then they may be called again."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.open: dict[int, None] = {}
        """Slots whose flows are to be judged again."""

    def read_back(self) -> None:
        """Find what was not finished."""
        self.open = {slot: None for slot, value in self._items() if value & 1}

    def _items(self) -> Iterable[tuple[int, int]]:
        for key, value in self._table.items():
            yield int.from_bytes(key, "little"), int.from_bytes(value, "little")

    def begin(self, interfaces: Iterable[int]) -> None:
        """Say that verdicts of pods are about to change, by the numbers of their interfaces."""
        slots = {each % abi.GENERATIONS for each in interfaces} - self.open.keys()
        self.open.update(dict.fromkeys(slots))
        self._put(slots, odd=True)

    def finish(self) -> None:
        """Let the flows of those pods be judged again, now that everything is written."""
        self._put(self.open, odd=False)
        self.open.clear()

    def _put(self, slots: Collection[int], *, odd: bool) -> None:
        keys = [slot.to_bytes(4, "little") for slot in slots]
        values = (int.from_bytes(self._table.get(key) or bytes(4), "little") for key in keys)
        now = (value + 1 if bool(value & 1) != odd else value + 2 for value in values)
        self._table.put_batch(keys, [(value & _MASK).to_bytes(4, "little") for value in now])
