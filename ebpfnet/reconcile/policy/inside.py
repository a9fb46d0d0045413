"""Who has no entry of his own, for want of room, and the blocks that he is in.

Until he has one, no block around him goes, and none becomes what shall not be said of him: he would be taken for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ebpfnet.reconcile.policy.blocks import Block, block_at


class Inside:
    """The classes of who has no entry, by the blocks of some lengths that he is in."""

    def __init__(self, around: Iterable[Block], addresses: Iterable[tuple[bytes, int]]) -> None:
        """Find them; ``around`` are the blocks that are asked for, ``addresses`` come with their classes."""
        self._lengths = {(each.v4, each.length) for each in around}
        self._found: dict[Block, set[int]] = {}
        for address, number in addresses if self._lengths else ():
            self.add(block_at(address), number)

    def add(self, block: Block, number: int) -> None:
        """Take in a block that has no entry."""
        for v4, length in self._lengths:
            if v4 == block.v4 and length < block.length:
                outer = Block(v4, length, block.prefix >> (block.length - length))
                self._found.setdefault(outer, set()).add(number)

    def of(self, block: Block) -> set[int]:
        """Return the classes of those in a block."""
        return self._found.get(block, set()) if self._found else set()
