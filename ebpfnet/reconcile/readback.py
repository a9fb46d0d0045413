"""What the kernel holds when we come: read once, adopted where it is right, removed where nobody wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.compile.services import RECORD
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.sets import EndpointSet


class ServiceState(NamedTuple):
    """``services`` and ``slots`` as found: frontend to value, and (id, generation) to {index: backend}."""

    frontends: dict[bytes, abi.Service]
    slots: dict[tuple[int, int], dict[int, bytes]]


def read_services(tables: Mapping[str, Table]) -> ServiceState:
    """Read ``services`` and ``slots`` back; raises ``TableError``."""
    frontends = {key: abi.Service.unpack(value) for key, value in tables["services"].items()}
    slots: dict[tuple[int, int], dict[int, bytes]] = {}
    unpack = abi.Slot.layout.unpack
    for key, value in tables["slots"].items():
        identity, generation, index = unpack(key)
        slots.setdefault((identity, generation), {})[index] = value
    return ServiceState(frontends, slots)


def name(names: Table, identity: int, label: str) -> None:
    """Put a name right; raises ``TableError``."""
    key, value = identity.to_bytes(8, "little"), abi.pack_name(label)
    if names.get(key) != value:
        names.put(key, value)


def adopt(state: ServiceState, set_id: int, frontend: bytes) -> EndpointSet | None:
    """Take a set out of what was found; slots that are missing show as records of zeros, the others stay behind."""
    service = state.frontends.get(frontend)
    if service is None or service.id != set_id:
        return None
    del state.frontends[frontend]
    held = state.slots.get((set_id, service.generation), {})
    run = bytearray(b"".join([held.pop(index, bytes(RECORD)) for index in range(service.count)]))
    return EndpointSet(set_id, frontend, service.generation, run)


def put_right(names: Table, want: Mapping[int, str], *, remove: bool) -> None:
    """Write names that are wrong, and ``remove`` those of nothing; one that is missing is written with its unit."""
    for key, value in list(names.items()):
        label = want.get(int.from_bytes(key, "little"))
        if label is None:
            if remove:
                names.delete(key)
        elif abi.pack_name(label) != value:
            names.put(key, abi.pack_name(label))
