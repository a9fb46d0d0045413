"""What the doctor says."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How bad it is. ``UNKNOWN``: nobody could look."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One thing that was looked at: ``command`` puts it right, and is empty when there is none or nothing to do."""

    check: str
    level: Level
    text: str
    command: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 when all is fine, 1 with warnings, 2 with errors."""
    levels = {each.level for each in findings}
    return 2 if Level.ERROR in levels else 1 if Level.WARNING in levels else 0
