"""What the kernel holds when we come: read once, adopted where it is right, removed where it is nothing's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ebpfnet import abi
from ebpfnet.compile.endpoints import RECORD
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.diff import records
from ebpfnet.reconcile.sets import EndpointSet, member_keys, set_key

_MEMBER = slice(8, 8 + RECORD)  # of a key of ``members``: the backend


@dataclass(slots=True)
class Found:
    """Endpoint sets as found, how many entries they are, and the keys that belong to none."""

    live: dict[int, EndpointSet]
    used: dict[str, int]
    slots: list[bytes]
    members: list[bytes]


def read_sets(tables: Mapping[str, Table], with_members: Callable[[int], bool]) -> Found:
    """Read ``sets``, ``slots`` and ``members`` back; raises ``TableError``.

    A slot that is missing shows as a record of zeros. ``with_members`` says of which sets members are wanted: those are
    completed where some are missing.
    """
    slots: dict[tuple[int, int], dict[int, bytes]] = {}
    unpack = abi.Slot.layout.unpack
    for key, value in tables["slots"].items():
        identity, generation, index = unpack(key)
        slots.setdefault((identity, generation), {})[index] = value
    members: dict[int, set[bytes]] = {}
    for key, *_ in tables["members"].items():
        members.setdefault(int.from_bytes(key[:8], "little"), set()).add(key[_MEMBER])
    live: dict[int, EndpointSet] = {}
    for key, value in tables["sets"].items():
        identity, entry = int.from_bytes(key, "little"), abi.Set.unpack(value)
        held = slots.get((identity, entry.generation), {})
        run = bytearray(b"".join([held.pop(index, bytes(RECORD)) for index in range(entry.count)]))
        live[identity] = EndpointSet(identity, entry.generation, run, entry.flags)
    used = {"sets": len(live), "slots": 0, "members": 0}
    strays = [each for identity, found in members.items() for each in _judge(live, identity, found, with_members, used)]
    left = [abi.Slot(*head, index).pack() for head, held in slots.items() for index in held]
    used["slots"] = len(left) + sum(each.count for each in live.values())
    used["members"] += len(strays)
    return Found(live, used, left, strays)


def _judge(
    live: Mapping[int, EndpointSet],
    identity: int,
    found: set[bytes],
    with_members: Callable[[int], bool],
    used: dict[str, int],
) -> list[bytes]:
    """Adopt the members of a set if they are all there; returns the keys of those to be removed."""
    backends = set(records(live[identity].run)) if identity in live else set()
    if backends and backends <= found:
        live[identity].members = True
        used["members"] += len(backends)
    elif not with_members(identity):
        backends = set()
    return member_keys(identity, found - backends)


def name(names: Table, identity: int, label: str) -> None:
    """Put a name right; raises ``TableError``."""
    key, value = set_key(identity), abi.pack_name(label)
    if names.get(key) != value:
        names.put(key, value)


def put_right(names: Table, want: Mapping[int, str], *, remove: bool) -> None:
    """Write names that are wrong or missing, and ``remove`` those of nothing; raises ``TableError``."""
    missing = dict(want)
    for key, value in list(names.items()):
        identity = int.from_bytes(key, "little")
        label = missing.pop(identity, None)
        if label is None:
            if remove:
                names.delete(key)
        elif abi.pack_name(label) != value:
            names.put(key, abi.pack_name(label))
    for identity, label in missing.items():
        names.put(set_key(identity), abi.pack_name(label))
