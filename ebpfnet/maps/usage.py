"""What went through services, as the datapath counted it; every CPU counts for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.maps.percpu import totals
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
    for key, value in usage.items():
        yield Used(int.from_bytes(key[:8], "little"), key[8:26], *totals(value, abi.Usage))
