"""Tables that say which share of the connections each backend gets; pure.

``consistent``: Maglev (Eisenbud et al., NSDI 2016, §3.4). Every backend fills the table in an order of its own, in
turns as many as its weight says, so that the table is a function of the name, the backends and their weights alone,
every node has the same, and few entries change with one backend. ``weighted``: as many entries for each as its weight
says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

SIZES = (251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521)
"""Primes, so that any step visits every entry."""
PER_BACKEND = 100  # entries: shares differ by a few percent at most
LARGEST_WEIGHTED = 65_536


def _reduced(backends: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    """Return backends that have a weight, in an order that is theirs, and the weights without a common factor."""
    weighty = sorted((backend, weight) for backend, weight in backends.items() if weight > 0)
    factor = math.gcd(*(weight for _, weight in weighty)) or 1
    return [(backend, weight // factor) for backend, weight in weighty]


def size_for(count: int) -> int:
    """Return how many entries the table of so many backends has."""
    return next((size for size in SIZES if size >= PER_BACKEND * count), SIZES[-1])


def consistent(name: str, backends: Mapping[bytes, int]) -> bytes:
    """Return the joined entries of a Maglev table of packed backends with their weights."""
    ranked = _reduced(backends)[: SIZES[-1]]
    if not ranked:
        return b""
    size = size_for(len(ranked))
    heaviest = max(weight for _, weight in ranked)
    positions, steps = [], []
    seed = hashlib.blake2b(name.encode(), digest_size=16).digest()
    for backend, _ in ranked:
        digest = hashlib.blake2b(backend, key=seed, digest_size=16).digest()
        positions.append(int.from_bytes(digest[:8], "little") % size)
        steps.append(int.from_bytes(digest[8:], "little") % (size - 1) + 1)
    taken = bytearray(size)
    table = [b""] * size
    earned = [0] * len(ranked)
    filled = 0
    while True:
        for number, (backend, weight) in enumerate(ranked):
            earned[number] += weight  # a turn whenever it has earned as much as the heaviest gets in a round
            if earned[number] < heaviest:
                continue
            earned[number] -= heaviest
            position, step = positions[number], steps[number]
            while taken[position]:
                position += step
                if position >= size:
                    position -= size
            taken[position] = 1
            table[position] = backend
            positions[number] = position
            filled += 1
            if filled == size:
                return b"".join(table)


def weighted(backends: Mapping[bytes, int]) -> bytes:
    """Return joined entries from which a random one is as likely a backend as its weight says."""
    ranked = _reduced(backends)
    total = sum(weight for _, weight in ranked)
    if total <= LARGEST_WEIGHTED:
        return b"".join([backend * weight for backend, weight in ranked])
    return b"".join([backend * max(1, weight * LARGEST_WEIGHTED // total) for backend, weight in ranked])
