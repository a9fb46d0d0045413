"""Policies that the tables have no room for, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebpfnet.model.facts import Problem, Ref
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.policy.regimes import Regimes
from ebpfnet.reconcile.policy.tables import PeerTable, RuleTable, number_of


def without_room(tables: Mapping[str, Keyed], regimes: Regimes, pods: Mapping[int, Any]) -> list[Problem]:
    """Return a problem of each policy some of whose entries do not fit; ``pods`` are those of each group."""
    found: dict[Ref, str] = {}
    for table in tables.values():
        if isinstance(table, RuleTable):
            size, ports = table.size, tables["rule_ports"].size
            text = (
                f"rules of pods that it selects do not fit into tables rules ({size} entries) and rule_ports ({ports});"
            )
            text += " they keep those they had, new pods have no traffic"
            for group in table.held & regimes.subjects.keys() & pods.keys():
                found |= dict.fromkeys(regimes.subjects[group].policies, text)
        elif isinstance(table, PeerTable) and table.unfit:
            numbers = {number_of(table.want.get(key)) for key in table.unfit}
            text = f"needs {len(table.unfit)} more entries, and table {table.name} ({table.size} entries) has no room"
            for group in regimes.with_entries(numbers):
                found |= dict.fromkeys(regimes.subjects[group].policies, text)
    return [Problem(ref, "spec", text) for ref, text in sorted(found.items())]
