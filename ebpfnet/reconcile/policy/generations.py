"""Generations of the pods' verdicts: a flow that was judged under another one is judged again at its next packet.

A generation is odd while what it stands for changes. So an agent that is killed on the way leaves the sign that flows
are still to be judged again, and the next one finishes it. It is raised between writes, too, of which a packet must not
see one without the other: the datapath, which reads one table after the other, asks again then (``bpf/lib/policy.h``).
That of all pods is changed with any: a packet that saw it even, and the same before and after, knows that no pod which
it looked up got another group meanwhile. All that are raised at once get the same number, above every one that there
is: so each only grows, and nobody looks at what it was.
"""

from __future__ import annotations

from ebpfnet import abi
from ebpfnet.maps.table import Table

_MASK = 0xFFFFFFFF
_WORDS = [slot.to_bytes(4, "little") for slot in range(abi.GENERATIONS)]


class Generations:
    """The table of them; methods that write raise ``TableError`` and may be called again."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._top = 0  # no number in the table is larger
        self.open: frozenset[int] = frozenset()
        """Slots whose flows are to be judged again."""

    def read_back(self) -> None:
        """Find what was not finished."""
        self.open = frozenset([slot for slot, value in self.look().items() if value & 1])

    def look(self) -> dict[int, int]:
        """Return what is in the table; whatever it is, the next number is larger."""
        found = {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in self._table.items()}
        self._top = max([self._top, *found.values()])
        return found

    def begin(self, interfaces: frozenset[int]) -> None:
        """Say that verdicts of pods are about to change, by the numbers of their interfaces."""
        if interfaces:
            self.open |= {abi.GENERATION_OF_ALL, *(each % abi.GENERATIONS for each in interfaces)}
            self._put(self._top + 1 | 1)

    def part(self) -> None:
        """Tell what is written from now on from what was: who read some of that and reads some of this looks again."""
        if self.open:
            self._put(self._top + 1 | 1)

    def finish(self) -> None:
        """Let the flows of those pods be judged again, now that everything is written."""
        if self.open:
            self._put((self._top | 1) + 1)
            self.open = frozenset()

    def _put(self, value: int) -> None:
        self._top = value & _MASK  # also when it was not written everywhere
        keys = b"".join([_WORDS[slot] for slot in self.open])
        self._table.put_batch(keys, self._top.to_bytes(4, "little") * len(self.open))
