"""``peer_blocks``: blocks of addresses and their classes, written from the inside and removed from the outside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable

from ebpfnet.maps.table import Table
from ebpfnet.reconcile.policy.blocks import ALL_V4, BITS, MAPPED, Block, Blocks, unpack_block
from ebpfnet.reconcile.policy.cells import NOBODY
from ebpfnet.reconcile.policy.inside import Inside
from ebpfnet.reconcile.policy.tables import Move, Pairs, PeerTable, number_of


class BlockTable(PeerTable):
    """``peer_blocks``. A block of IPv6 that is around all of IPv4 gets one beside it that says: these are nobody."""

    def __init__(self, table: Table, ready: Callable[[int], bool], too_open: Callable[[Pairs], object]) -> None:
        super().__init__(table, ready)
        self._within: Collection[tuple[bytes, int]] = ()
        self._too_open = too_open
        self.index = Blocks()
        """The classes in the table, by block."""
        self.aims = Blocks()
        """The classes that are to be in the table."""

    def place(self, key: bytes, number: int | None) -> None:
        """Want an entry of a class, or with None no entry."""
        if key == ALL_V4.key and number is None and any(map(_is_around, self.have.keys() | self.want.keys())):
            number = NOBODY
        super().place(key, number)
        if number is not None and _is_around(key) and ALL_V4.key not in self.want:
            super().place(ALL_V4.key, NOBODY)

    def tidy(self) -> None:
        """Let go of the block beside those that are around all of IPv4, when they are gone."""
        if self.untidy:
            super().place(ALL_V4.key, None)

    @property
    def untidy(self) -> bool:
        """Whether that block is there in vain."""
        beside = ALL_V4.key in self.want and number_of(self.want[ALL_V4.key]) == NOBODY
        return beside and not any(map(_is_around, self.have.keys() | self.want.keys()))

    def read_back(self, *, keep: bool) -> None:
        """Look at the whole table; what nobody wants stays with ``keep``."""
        self.index = Blocks()
        super().read_back(keep=keep)
        for key in self._unknown:
            _note(self.aims, key, self.have[key])
        if ALL_V4.key in self.have and ALL_V4.key not in self.want and any(map(_is_around, self.have)):
            super().place(ALL_V4.key, NOBODY)

    def origin(self, move: Move) -> int:
        """Return the class that an address or a block was of, by its own entry or by a block around it."""
        return move.before or _around(self.index, move.key)

    def aim(self, move: Move) -> int:
        """Return the class that it is to be of."""
        return move.now or _around(self.aims, move.key)

    def ask(self, key: bytes, value: bytes | None) -> None:
        """Want a value under a key, or with None nothing."""
        super().ask(key, value)
        _note(self.aims, key, value)

    def know_all(self) -> None:
        """Forget what was kept because somebody might want it."""
        for key in self._unknown:
            _note(self.aims, key, None)
        super().know_all()

    def _ranked(self, keys: Iterable[bytes]) -> Iterable[bytes]:
        """Order them from the inside: what is left out of a block is known before the block is."""
        inside = Inside(map(unpack_block, keys), self._within)
        room, order = self.room, []
        for key in sorted((each for each in keys if each in self.want), key=_length, reverse=True):
            block, number = unpack_block(key), number_of(self.want[key])
            waits = self._too_open([(number, each) for each in inside.of(block)])
            if not waits:
                order.append(key)
            if key in self.have:
                continue
            if waits or room < 1 or not self._ready(number):
                inside.add(block, number)
            else:
                room -= 1
        return order

    def _leaving(self) -> list[bytes]:
        """Order them from the outside: a block goes before what is left out of it."""
        leaving = sorted(super()._leaving(), key=_length)
        inside = Inside(map(unpack_block, leaving), self._within)
        for key, number in self.lacking() if leaving else ():
            inside.add(unpack_block(key), number)
        return [key for key in leaving if not inside.of(unpack_block(key))]

    def enter_around(self, addresses: Collection[tuple[bytes, int]]) -> None:
        """Write everything; ``addresses`` have no entry of their own and shall have one, of these classes."""
        self._within = addresses
        self._write_all()

    def pending(self) -> list[Block]:
        """Return the blocks that are not what they shall be."""
        return [unpack_block(key) for key in self._dirty if self.want.get(key) != self.have.get(key)]

    def _set(self, key: bytes, value: bytes | None) -> None:
        super()._set(key, value)
        _note(self.index, key, value)


def _note(index: Blocks, key: bytes, value: bytes | None) -> None:
    block = unpack_block(key)
    if value is not None:
        index.set(block, number_of(value))
    elif block in index:
        index.drop(block)


def _around(index: Blocks, key: bytes) -> int:
    """Return the class of the smallest block around an address, or around another block."""
    if len(key) * 8 == BITS:
        return index.nearest(key) or NOBODY
    block = unpack_block(key)
    first = (block.prefix << (BITS - block.length)).to_bytes(16, "big")
    return index.nearest(first, block.length) or NOBODY


def _length(key: bytes) -> int:
    return int.from_bytes(key[:4], sys.byteorder)


def _is_around(key: bytes) -> bool:
    block = unpack_block(key)
    return not block.v4 and block.length < MAPPED and ALL_V4.prefix >> (MAPPED - block.length) == block.prefix
