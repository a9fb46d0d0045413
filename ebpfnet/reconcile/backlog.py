"""Units that could not be written, and when each is tried again: soon at first, then with growing patience."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

FIRST_S = 0.05
MAX_S = 30.0


class Backlog:
    """Holds for each unit when it is due and how long the last wait was."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._units: dict[int, tuple[float, float]] = {}

    def __contains__(self, unit: int) -> bool:
        return unit in self._units

    def __len__(self) -> int:
        return len(self._units)

    def add(self, unit: int) -> bool:
        """Note that a unit failed; returns whether it is the first time in a row."""
        _, patience = self._units.get(unit, (0.0, FIRST_S / 2))
        patience = min(patience * 2, MAX_S)
        first = unit not in self._units
        self._units[unit] = (self._clock() + patience, patience)
        return first

    def drop(self, unit: int) -> None:
        """Note that a unit is as it should be."""
        self._units.pop(unit, None)

    def clear(self) -> None:
        """Forget all."""
        self._units.clear()

    def hurry(self, unit: int) -> None:
        """Let a unit be due now: something changed that may help. Its patience stays, in case it does not."""
        if unit in self._units:
            self._units[unit] = (self._clock(), self._units[unit][1])

    def due(self) -> list[int]:
        """Return the units whose time has come."""
        now = self._clock()
        return [unit for unit, (when, _) in self._units.items() if when <= now]

    def only(self, units: AbstractSet[int]) -> bool:
        """Return whether nothing waits but some of ``units``."""
        return self._units.keys() <= units

    @property
    def next(self) -> float | None:
        """When the next unit is due, on the clock; None: never."""
        return min((when for when, _ in self._units.values()), default=None)
