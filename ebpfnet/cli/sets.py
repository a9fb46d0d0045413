"""Frontends and the endpoint sets behind them, as the tables have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.cli.lookup import Lookup, is_local, without_policy
from ebpfnet.maps.dump import block_name, host_port, protocol_name

_NOWHERE = (bytes(16), abi.V4_PREFIX + bytes(4))
_NO_SET = abi.Set(0, 0)
_SLOT = abi.Slot.layout
# Plain numbers, for lists of thousands: an IntFlag's "&" costs as much as all else of a row.
_CONSISTENT, _ELSEWHERE, _WEIGHTED = int(abi.SetFlag.CONSISTENT), int(abi.SetFlag.ELSEWHERE), int(abi.SetFlag.WEIGHTED)
_UNEVEN = _CONSISTENT | _WEIGHTED
_CLUSTER_IP, _BALANCER = int(abi.Mark.CLUSTER_IP), int(abi.Mark.BALANCER)


class Endpoints(NamedTuple):
    """One endpoint set: for whom it is, and what it holds."""

    id: int
    name: str
    local: bool
    entry: abi.Set

    @property
    def consistent(self) -> bool:
        """Whether its slots are a Maglev table."""
        return bool(self.entry.flags & _CONSISTENT)

    @property
    def when_empty(self) -> str:
        """What becomes of connections when there is no backend."""
        return "dropped: they are on other nodes" if self.entry.flags & _ELSEWHERE else "refused"


class Frontend(NamedTuple):
    """An address and port that is served. ``kind`` is what the service has it for."""

    key: abi.Frontend
    entry: abi.Service
    kind: str
    inside: Endpoints
    outside: Endpoints

    @property
    def name(self) -> str:
        """NAMESPACE/NAME:PORT."""
        return without_policy(self.inside.name)

    @property
    def internal(self) -> bool:
        """Whether the internal traffic policy is the one that counts: of cluster IPs."""
        return self.kind == "ClusterIP"


class Sets:
    """All of one node's frontends and sets."""

    def __init__(self, tables: Any) -> None:
        self._tables = tables
        self.lookup = Lookup(tables)
        self._found: dict[int, Endpoints] = {}
        self._slots: dict[int, Counter[bytes]] = {}

    def frontends(self) -> Iterator[Frontend]:
        """Yield every frontend; what only says what an address is, is none."""
        for raw, entry in self.lookup.entries.items():
            key = abi.Frontend.unpack(raw)
            yield Frontend(
                key, entry, self._kind(key, entry), self.endpoints(entry.inside), self.endpoints(entry.outside)
            )

    def _kind(self, key: abi.Frontend, entry: abi.Service) -> str:
        if key.address in _NOWHERE:
            return "NodePort"
        if self.lookup.marks.get(key.address, 0) & _CLUSTER_IP:
            return "ClusterIP"
        return "LoadBalancer" if entry.marks & _BALANCER else "ExternalIP"

    def endpoints(self, identity: int) -> Endpoints:
        """Return one set; one that is not there is empty."""
        if identity not in self._found:
            raw = self._tables["sets"].get(identity.to_bytes(8, "little"))
            name = self.lookup.name(identity)
            self._found[identity] = Endpoints(identity, name, is_local(name), abi.Set.unpack(raw) if raw else _NO_SET)
        return self._found[identity]

    def backends(self, found: Endpoints) -> dict[abi.Backend, int]:
        """Return a set's backends with the number of its slots that each one has."""
        return {abi.Backend.unpack(raw): count for raw, count in self._counts(found).items()}

    def _counts(self, found: Endpoints) -> Counter[bytes]:
        if found.id not in self._slots:
            slots = (abi.Slot(found.id, found.entry.generation, index).pack() for index in range(found.entry.count))
            raws = (self._tables["slots"].get(slot) for slot in slots)
            self._slots[found.id] = Counter(raw for raw in raws if raw is not None)
        return self._slots[found.id]

    def read_all(self) -> None:
        """Read every set at once, and every slot if some backends may have several: cheaper than one by one."""
        entries = {int.from_bytes(key, "little"): abi.Set.unpack(raw) for key, raw in self._tables["sets"].items()}
        counts = {identity: Counter[bytes]() for identity, entry in entries.items() if entry.flags & _UNEVEN}
        for key, raw in self._tables["slots"].items() if counts else ():
            identity, generation, index = _SLOT.unpack(key)
            if identity in counts:
                entry = entries[identity]
                if generation == entry.generation and index < entry.count:
                    counts[identity][raw] += 1
        self._slots.update(counts)
        for identity, entry in entries.items():
            name = self.lookup.name(identity)
            self._found[identity] = Endpoints(identity, name, is_local(name), entry)

    def size(self, found: Endpoints) -> int:
        """Return how many backends a set has: as many as slots, but where some have several."""
        return len(self._counts(found)) if found.entry.flags & _UNEVEN else found.entry.count

    def ranges(self, identity: int) -> list[str]:
        """Return the clients that a service's load balancer addresses are for."""
        found = [abi.Range.unpack(key) for key, _ in self._tables["ranges"].items()]
        return sorted(block_name(each.prefix_length - 64, each.address) for each in found if each.service == identity)


def row_of(sets: Sets, frontend: Frontend) -> dict[str, Any]:
    """Return what a list says of a frontend."""
    key, entry = frontend.key, frontend.entry
    counted = frontend.inside if frontend.internal else frontend.outside
    return {
        "service": frontend.name,
        "type": frontend.kind,
        "address": str(abi.unpack_address(key.address)),
        "port": key.port,
        "protocol": protocol_name(key.protocol),
        "policy": "Local" if counted.local else "Cluster",
        "backends": sets.size(frontend.inside),
        "backends_outside": sets.size(frontend.outside),
        "affinity_seconds": entry.affinity_s or None,
        "consistent": frontend.inside.consistent,
        "direct": bool(entry.marks & abi.Mark.DIRECT),
        "limited": bool(entry.ranges),
        "when_empty": counted.when_empty,
        "id": f"{entry.inside:016x}",
        "id_outside": f"{entry.outside:016x}",
    }


def backend_rows(sets: Sets, found: Endpoints) -> list[dict[str, Any]]:
    """Return a row for each backend of a set. ``share`` says how often it is chosen, where that is not all the same."""
    backends = sets.backends(found)
    total = sum(backends.values())
    uneven = len(set(backends.values())) > 1
    rows = []
    for backend, slots in backends.items():
        where = {"backend": host_port(backend.address, backend.port), "pod": sets.lookup.pods.get(backend.address, "")}
        rows.append({**where, "share": f"{100 * slots / total:.1f}%" if uneven else None})
    return sorted(rows, key=lambda row: str(row["backend"]))
