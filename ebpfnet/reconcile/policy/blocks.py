"""Blocks of addresses that policies name, by length: which of them are around an address, and which inside a block.

All lengths are those of IPv4-mapped addresses, but the families never meet: ``::/0`` is not around an IPv4 address.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from ebpfnet import abi
from ebpfnet.model.facts import IPNetwork

T = TypeVar("T")

BITS = 128
MAPPED = 96


class Block(NamedTuple):
    """A block as the tables have it: ``prefix`` is the number of its first ``length`` bits."""

    v4: bool
    length: int
    prefix: int

    @property
    def key(self) -> bytes:
        """The key in ``peer_blocks``."""
        return abi.Block(self.length, (self.prefix << (BITS - self.length)).to_bytes(16, "big")).pack()

    def holds(self, other: Block) -> bool:
        """Say whether another block is in this one, or this one itself."""
        longer = other.length - self.length
        return self.v4 == other.v4 and longer >= 0 and other.prefix >> longer == self.prefix


def unpack_block(key: bytes) -> Block:
    """Read a key of ``peer_blocks``."""
    length, address = abi.Block.layout.unpack(key)
    return Block(length >= MAPPED and is_v4(address), length, int.from_bytes(address, "big") >> (BITS - length))


def block_at(address: bytes) -> Block:
    """Return the block of one packed address."""
    return Block(is_v4(address), BITS, int.from_bytes(address, "big"))


ALL_V4 = Block(v4=True, length=MAPPED, prefix=int.from_bytes(abi.V4_PREFIX, "big"))
_BUCKET_V4, _BUCKET_V6 = 15, 8  # bytes of an address that name its bucket: 256 of IPv4, a link's of IPv6


def block_of(network: IPNetwork) -> Block:
    """Return a network as the tables have it."""
    v4 = network.version == 4
    length = network.prefixlen + (MAPPED if v4 else 0)
    first = int.from_bytes(abi.pack_address(network.network_address), "big")
    return Block(v4, length, first >> (BITS - length))


def is_v4(address: bytes) -> bool:
    """Say whether a packed address is one of IPv4."""
    return address.startswith(abi.V4_PREFIX)


def bucket_of(address: bytes) -> bytes:
    """Return what a packed address shares with those that are near it."""
    return address[:_BUCKET_V4] if is_v4(address) else address[:_BUCKET_V6]


class Blocks:
    """What is known of each block: a number that its owner gives it."""

    def __init__(self) -> None:
        self._numbers: dict[Block, int] = {}
        self._by_length: dict[bool, dict[int, dict[int, int]]] = {True: {}, False: {}}

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def __contains__(self, block: Block) -> bool:
        return block in self._numbers

    def set(self, block: Block, number: int) -> None:
        """Take a block in."""
        self._numbers[block] = number
        self._by_length[block.v4].setdefault(block.length, {})[block.prefix] = number

    def drop(self, block: Block) -> None:
        """Take a block out."""
        del self._numbers[block]
        same = self._by_length[block.v4][block.length]
        del same[block.prefix]
        if not same:
            del self._by_length[block.v4][block.length]

    def around(self, address: bytes) -> frozenset[int]:
        """Return the numbers of the blocks that a packed address is in."""
        lengths = self._by_length[is_v4(address)]
        if not lengths:
            return frozenset()
        value = int.from_bytes(address, "big")
        found = (same.get(value >> (BITS - length)) for length, same in lengths.items())
        return frozenset(number for number in found if number is not None)

    def nearest(self, address: bytes, below: int = BITS + 1) -> int | None:
        """Return the number of the smallest block, of less than so many bits, that a packed address is in."""
        lengths = self._by_length[is_v4(address)]
        value = int.from_bytes(address, "big")
        for length in sorted((each for each in lengths if each < below), reverse=True):
            found = lengths[length].get(value >> (BITS - length))
            if found is not None:
                return found
        return None

    def above(self, block: Block) -> frozenset[int]:
        """Return the numbers of the blocks that a block is in, itself included."""
        lengths = self._by_length[block.v4].items()
        found = (
            same.get(block.prefix >> (block.length - length)) for length, same in lengths if length <= block.length
        )
        return frozenset(number for number in found if number is not None)

    def inside(self, block: Block) -> list[Block]:
        """Return the blocks in a block that are smaller."""
        longer = [(length, same) for length, same in self._by_length[block.v4].items() if length > block.length]
        return [
            Block(block.v4, length, prefix)
            for length, same in longer
            for prefix in same
            if prefix >> (length - block.length) == block.prefix
        ]


class Buckets(Generic[T]):
    """Something of every address, and quickly that of all addresses in a block."""

    def __init__(self) -> None:
        self._buckets: dict[bytes, dict[bytes, T]] = {}

    def get(self, address: bytes) -> T | None:
        """Return what is known of a packed address."""
        bucket = self._buckets.get(bucket_of(address))
        return bucket.get(address) if bucket else None

    def set(self, address: bytes, what: T) -> None:
        """Take in what is known of a packed address."""
        self._buckets.setdefault(bucket_of(address), {})[address] = what

    def put(self, address: bytes, what: T) -> bool:
        """Take in what is known of a packed address, if nothing was; says whether."""
        name = address[:_BUCKET_V4] if address.startswith(abi.V4_PREFIX) else address[:_BUCKET_V6]
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = {}
        elif address in bucket:
            return False
        bucket[address] = what
        return True

    def drop(self, address: bytes) -> None:
        """Forget a packed address."""
        name = bucket_of(address)
        bucket = self._buckets[name]
        del bucket[address]
        if not bucket:
            del self._buckets[name]

    def within(self, block: Block) -> list[bytes]:
        """Return the packed addresses in a block."""
        size = (_BUCKET_V4 if block.v4 else _BUCKET_V6) * 8
        shift = BITS - block.length
        found: list[bytes] = []
        for name, bucket in self._buckets.items():
            if (len(name) == _BUCKET_V4) != block.v4:
                continue
            bits = int.from_bytes(name, "big")
            if block.length <= size:
                if bits >> (size - block.length) == block.prefix:
                    found += bucket
            elif bits == block.prefix >> (block.length - size):
                found += [each for each in bucket if int.from_bytes(each, "big") >> shift == block.prefix]
        return found
