"""Where things are on a node. Nothing else, so that a list that only wants to know loads nothing for it."""

from __future__ import annotations

from pathlib import Path

RUN = Path("/run/ebpfnet")
"""An agent's socket and lock."""

LABS = Path("/run/ebpfnet-lab")
"""The labs of this machine, a folder each."""
