"""The clock of the programs in the kernel: CLOCK_MONOTONIC, as it is outside every time namespace."""

from __future__ import annotations

import time
from pathlib import Path

OFFSETS = Path("/proc/self/timens_offsets")
SECOND = 1_000_000_000


def kernel_ns() -> int:
    """Return what ``seen_ns`` of a packet at this moment would be.

    In a time namespace (time_namespaces(7)) a process has a CLOCK_MONOTONIC of its own, hours apart perhaps:
    connections would be idle for as long. The programs read the kernel's.
    """
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) - offset_ns()


def offset_ns() -> int:
    """Return how far this process's CLOCK_MONOTONIC is ahead of the kernel's."""
    try:
        rows = [line.split() for line in OFFSETS.read_text().splitlines()]
    except OSError:  # a kernel without time namespaces
        return 0
    return sum(int(row[1]) * SECOND + int(row[2]) for row in rows if row[0] == "monotonic")
