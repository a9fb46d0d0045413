"""What can't be served as it was asked for, by object and field: said by a source, or by a table that is full."""

from __future__ import annotations

from ebpfnet.model.facts import Problem, Ref, Refused


class Refusals:
    """Holds them until they are settled. ``told`` counts changes, so that who follows them need not compare."""

    def __init__(self) -> None:
        self.told = 0
        self._said: dict[Ref, dict[str, Refused]] = {}
        self._full: dict[int, Problem] = {}

    def refuse(self, refused: Refused) -> None:
        """Take in what a source refused."""
        self._said.setdefault(refused.problem.ref, {})[refused.problem.field] = refused
        self.told += 1

    def accept(self, ref: Ref) -> None:
        """Forget what a source said of an object."""
        if self._said.pop(ref, None):
            self.told += 1

    def does_not_fit(self, unit: int, problem: Problem | None) -> None:
        """Note what has no room in a table, or with None that it has."""
        before = self._full.pop(unit, None)
        if problem is not None:
            self._full[unit] = problem
        self.told += problem != before

    @property
    def found(self) -> list[Refused]:
        """All of them; in whole (the last good version stays) or ``partial``."""
        said = [refused for group in self._said.values() for refused in group.values()]
        return said + [Refused(problem) for problem in self._full.values()]
