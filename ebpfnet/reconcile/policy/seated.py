"""What the table of pods says of groups."""

from __future__ import annotations

from collections.abc import Mapping

from ebpfnet.reconcile.policy.members import group_of


class Seated:
    """The pods of one version of the table; None: it is not known, and nobody is there."""

    __slots__ = ("groups", "interfaces", "table")

    def __init__(self, table: Mapping[bytes, bytes] | None) -> None:
        self.table = table
        values = table.values() if table is not None else ()
        self.groups = {group_of(value) for value in values}
        self.interfaces = frozenset([int.from_bytes(value[:4], "little") for value in values])


class Look:
    """Looks at the table, once at each version: it is replaced, and never changed."""

    def __init__(self) -> None:
        self._seen = Seated(None)

    def __call__(self, table: Mapping[bytes, bytes] | None) -> Seated:
        """Return what it says."""
        if table is not self._seen.table:
            self._seen = Seated(table)
        return self._seen
