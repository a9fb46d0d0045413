"""What becomes of peers whom the tables have no room for, and of policies that speak of them.

Who has no room stays what he was, and so does what is said of him: a group that would let him do more than it shall
keeps all its rules. Rules that do not fit keep their groups as they are, too. Both are named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ebpfnet.model.facts import Problem, Ref
from ebpfnet.reconcile.keyed import Keyed
from ebpfnet.reconcile.policy.block_table import BlockTable
from ebpfnet.reconcile.policy.regimes import Regimes
from ebpfnet.reconcile.policy.tables import PeerTable, RuleTable


def move(peers: PeerTable, blocks: BlockTable, part: Callable[[], None]) -> None:
    """Let all move to their classes who can; nobody is taken for who is around him on the way.

    ``part`` is called between writes of which nobody may meet only the second.
    """
    peers.enter()  # who is somebody of his own now never meets what is said of the blocks that he is in
    if blocks.moves():
        part()
    lacking = peers.lacking()
    blocks.enter_around(lacking)
    peers.leave_within(blocks.pending())
    if lacking and peers.lacking() != lacking:
        blocks.enter_around(peers.lacking())


def stuck(peers: PeerTable, blocks: BlockTable) -> set[tuple[int, int]]:
    """Return the classes that those are in who could not move, and where they belong."""
    return {(blocks.origin(each), blocks.aim(each)) for table in (peers, blocks) for each in table.moves()}


def without_room(
    tables: Mapping[str, Keyed], regimes: Regimes, pods: Mapping[int, Any], apart: Collection[int]
) -> list[Problem]:
    """Return a problem of each policy some of whose entries do not fit.

    ``pods`` are those of each group, ``apart`` the groups that speak of peers who have no room.
    """
    sizes = {name: f"{name} ({table.size} entries)" for name, table in tables.items()}
    lacking = [
        f"{len(table.unfit)} more entries in table {sizes[name]}" for name, table in tables.items() if table.unfit
    ]
    held = tables["rules"].held if isinstance(tables["rules"], RuleTable) else ()
    found: dict[Ref, str] = {}
    for group in regimes.subjects.keys() & pods.keys() & {*held, *apart}:
        if group in apart and lacking:
            text = f"needs {' and '.join(lacking)}, which have no room;"
        else:
            text = f"rules of pods that it selects do not fit into tables {sizes['rules']} and {sizes['rule_ports']};"
        text += " they keep those they had, new pods have no traffic"
        found |= dict.fromkeys(regimes.subjects[group].policies, text)
    return [Problem(ref, "spec", text) for ref, text in sorted(found.items())]
