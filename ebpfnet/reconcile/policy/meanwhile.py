"""What is said of new classes while those who are to be in them move there: what was said of them before.

So nobody can tell when a peer moves. Pods that leave their group for another one then meet all of before until they do,
and rules of groups that stay change only afterwards, one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from ebpfnet.reconcile.policy.cells import NOBODY
from ebpfnet.reconcile.policy.entries import rule_key
from ebpfnet.reconcile.policy.tables import RuleTable

Concerned = Callable[[int, int], Iterable[tuple[int, int]]]
"""Groups and directions that may say something else of one class than of another."""


class Meanwhile:
    """What is wanted of rules until all have moved. ``groups``: those that say something else afterwards."""

    def __init__(self, rules: RuleTable, moves: Iterable[tuple[int, int]], concerned: Concerned) -> None:
        """Find it; ``moves`` are the moves to classes that nobody is in yet, from which class."""
        self.groups: set[int] = set()
        self._rules = rules
        self._values: dict[bytes, bytes | None] = {}
        origins: dict[int, set[int]] = {}
        for before, now in moves:
            origins.setdefault(now, set()).add(before)
        for number, froms in origins.items():
            for group, way in dict.fromkeys(each for before in froms for each in concerned(before, number)):
                if group in rules.seen_groups and group not in rules.held:
                    self._find(group, way, number, froms)
        lacking = sum(value is not None and key not in rules.have for key, value in self._values.items())
        if lacking > rules.room:
            self._values, self.groups = {}, set()

    def _find(self, group: int, way: int, number: int, froms: Iterable[int]) -> None:
        _, after = self._rules.effective(group, number, way)
        said = {self._rules.effective(group, before, way)[0] for before in froms}
        value = said.pop() if len(said) == 1 else after  # of several classes: each is told what is new by its move
        if value != after:
            self.groups.add(group)
        key = rule_key(group, number, way)
        own = value if value != self._rules.have.get(rule_key(group, NOBODY, way)) else None
        if own != self._rules.want.get(key):
            self._values[key] = own

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """Want that for as long."""
        after = {key: self._rules.want.get(key) for key in self._values}
        for key, value in self._values.items():
            self._rules.ask(key, value)
        try:
            yield
        finally:
            for key, value in after.items():
                self._rules.ask(key, value)
