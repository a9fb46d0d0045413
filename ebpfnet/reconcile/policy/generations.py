"""Generations of the pods' verdicts: a flow that was judged under another one is judged again at its next packet.

A generation is odd while what it stands for changes. So an agent that is killed on the way leaves the sign that flows
are still to be judged again, and the next one finishes it. It is raised between writes, too, of which a packet must not
see one without the other: the datapath, which reads one table after the other, asks again then (``bpf/lib/policy.h``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ebpfnet import abi
from ebpfnet.maps.table import Table

_MASK = 0xFFFFFFFF


class Generations:
    """``generations``. Methods raise ``TableError``; then they may be called again."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.open: dict[int, int] = {}
        """Slots whose flows are to be judged again, and what they hold: nobody else writes them."""

    def read_back(self) -> None:
        """Find what was not finished."""
        self.open = {slot: value for slot, value in self._items() if value & 1}

    def _items(self) -> Iterable[tuple[int, int]]:
        for key, value in self._table.items():
            yield int.from_bytes(key, "little"), int.from_bytes(value, "little")

    def begin(self, interfaces: Iterable[int]) -> None:
        """Say that verdicts of pods are about to change, by the numbers of their interfaces."""
        slots = {each % abi.GENERATIONS for each in interfaces} - self.open.keys()
        there = {slot: int.from_bytes(self._table.get(_key(slot)) or bytes(4), "little") for slot in slots}
        self.open |= there
        self._put({slot: value + (2 if value & 1 else 1) for slot, value in there.items()})

    def part(self) -> None:
        """Tell what is written from now on from what was: who read some of that and reads some of this looks again."""
        self._put({slot: value + 2 for slot, value in self.open.items()})

    def finish(self) -> None:
        """Let the flows of those pods be judged again, now that everything is written."""
        self._put({slot: value + (1 if value & 1 else 2) for slot, value in self.open.items()})
        self.open.clear()

    def _put(self, values: Mapping[int, int]) -> None:
        now = {slot: value & _MASK for slot, value in values.items()}
        self._table.put_batch([_key(slot) for slot in now], [value.to_bytes(4, "little") for value in now.values()])
        self.open |= now


def _key(slot: int) -> bytes:
    return slot.to_bytes(4, "little")
