"""Labels, and selectors over them: small pure values, equal when they mean the same in the same words."""

from __future__ import annotations

from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]
"""Sorted by key, so that equal labels are equal and can be a key."""


class Requirement(NamedTuple):
    """One thing that is asked of a label. ``values`` None: that it is there; ``negated``: the opposite.

    ``NotIn`` is the opposite of ``In``, so labels without the key satisfy it.
    """

    key: str
    values: frozenset[str] | None
    negated: bool = False

    def allows(self, value: str | None) -> bool:
        """Say whether a label's value (None: there is no such label) satisfies it."""
        return (value is not None and (self.values is None or value in self.values)) != self.negated


class Selector(NamedTuple):
    """Labels that satisfy every requirement; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Say whether labels are selected."""
        if not self.requirements:
            return True
        have = dict(labels)
        return all(each.allows(have.get(each.key)) for each in self.requirements)


EVERYTHING = Selector()
NOTHING = Selector((Requirement("", frozenset()),))
"""Selects nothing: no value is one of none."""
