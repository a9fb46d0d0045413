"""What went through services, as the datapath counted it; every CPU counts for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.maps.table import Table


class Used(NamedTuple):
    """What went through an endpoint set to one backend (packed address and port), and back."""

    set_id: int
    backend: bytes
    connections: int
    packets: int
    bytes: int


def used(usage: Table) -> Iterator[Used]:
    """Yield what table ``usage`` holds; raises ``TableError``."""
    size = abi.Usage.size()
    for key, value in usage.items():
        parts = [abi.Usage.unpack(value[at : at + size]) for at in range(0, len(value), size)]
        counts = (sum(part.connections for part in parts), sum(part.packets for part in parts))
        yield Used(int.from_bytes(key[:8], "little"), key[8:26], *counts, sum(part.bytes for part in parts))
