"""Figures: what a benchmark hands back, the table of them, and the file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, beside a rival's and a bound where there is one.

    ``ratio`` is ours over the rival's; where both were measured in interleaved rounds it is the median of the rounds'
    own ratios, so what slowed one whole round does not show in it. ``holds`` is None for a figure without a bound.
    """

    name: str
    value: float
    unit: str
    rival: str | None = None
    rival_value: float | None = None
    ratio: float | None = None
    bound: str | None = None
    holds: bool | None = None


def at_most(name: str, value: float, unit: str, limit: float) -> Figure:
    """Return a figure that holds up to ``limit``."""
    return Figure(name, value, unit, bound=f"≤ {limit:,g} {unit}", holds=value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Figure:
    """Return a figure that holds from ``limit`` on."""
    return Figure(name, value, unit, bound=f"≥ {limit:,g} {unit}", holds=value >= limit)


def against(
    name: str, unit: str, ours: Sequence[float], rival: str, theirs: Sequence[float], least: float | None = None
) -> Figure:
    """Return a rate beside a rival's, measured round by round; with ``least`` it holds from that ratio."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    value, rival_value = statistics.median(ours), statistics.median(theirs)
    bound = None if least is None else f"≥ {least:g} ×"
    return Figure(name, value, unit, rival, rival_value, ratio, bound, None if least is None else ratio >= least)


def percentile(values: Iterable[float], per_cent: float) -> float:
    """Return the smallest value that ``per_cent`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * per_cent / 100))]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.3g}"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as text for people."""
    rows = [("figure", "value", "unit", "rival", "rival's", "ratio", "bound", "holds")]
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.3f}"
        holds = "" if f.holds is None else "yes" if f.holds else "NO"
        values = (f.name, _number(f.value), f.unit, f.rival or "", _number(f.rival_value), ratio, f.bound or "", holds)
        rows.append(values)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {1, 4, 5}
    lines = []
    for row in rows:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def store(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as a list of JSON objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1, ensure_ascii=False) + "\n")
