"""What a process may do: the capabilities that the datapath needs, checked before anything is tried."""

from __future__ import annotations

from pathlib import Path

from ebpfnet.exits import NotRoot

# include/uapi/linux/capability.h; why each is needed stands in deploy/daemonset.yaml.
NEEDED = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}


def missing(status: str) -> list[str]:
    """Return the names of needed capabilities that are not effective, from the text of a /proc/PID/status."""
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return [name for name, bit in NEEDED.items() if not effective >> bit & 1]


def check() -> None:
    """Raise ``NotRoot`` naming what this process may not do."""
    absent = missing(Path("/proc/self/status").read_text())
    if absent:
        raise NotRoot(f"this needs {', '.join(absent)} (root has them; deploy/daemonset.yaml grants them)")
