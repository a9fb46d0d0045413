"""Namespaces of test runs that were killed: named ``t<pid>-…``, as all that tests make."""

from __future__ import annotations

import re
from pathlib import Path

from ebpfnet.lab import namespace

PLACE = Path("/run/netns")


def remove() -> None:
    """Remove the namespaces of processes that are gone."""
    for path in PLACE.iterdir() if PLACE.is_dir() else ():
        owner = re.fullmatch(r"t(\d+)-.+", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            namespace.remove(path.name)
