"""One run of the `sync` benchmark, in a process of its own so that memory is its own: prints one JSON object.

A full sync into new kernel tables, single changes in the largest service, and a restart over the same tables.
"""

from __future__ import annotations

import gc
import json
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ebpfnet import abi
from ebpfnet.maps import kernel
from ebpfnet.maps.table import Table
from ebpfnet.model import endpoints
from ebpfnet.model.endpoints import Condition
from ebpfnet.model.facts import Change, EndpointSlice, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from tests.bench import objects

CHANGES = 1_000
NEW_ADDRESS = 1_000_000  # beyond every endpoint's number


class Counting:
    """A table that counts what is written to it."""

    def __init__(self, table: Table) -> None:
        self.spec = table.spec
        self.writes = 0
        self._table = table

    def get(self, key: bytes) -> bytes | None:
        return self._table.get(key)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return self._table.items()

    def put(self, key: bytes, value: bytes) -> None:
        self.writes += 1
        self._table.put(key, value)

    def put_batch(self, keys: Sequence[bytes] | bytes, values: Sequence[bytes] | bytes) -> None:
        self.writes += len(keys) // self.spec.key_size if isinstance(keys, bytes) else len(keys)
        self._table.put_batch(keys, values)

    def delete(self, key: bytes) -> None:
        self.writes += 1
        self._table.delete(key)

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        listed = list(keys)
        self.writes += len(listed)
        self._table.delete_batch(listed)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _replace(piece: EndpointSlice, index: int, record: bytes) -> EndpointSlice:
    at = index * endpoints.RECORD
    run = piece.endpoints[:at] + record + piece.endpoints[at + endpoints.RECORD :]
    return EndpointSlice(piece.ref, piece.service, piece.ipv6, piece.ports, run)


def _flips(slices: list[EndpointSlice]) -> Iterator[EndpointSlice]:
    """Yield slices in which one endpoint is no longer ready, and then ready again."""
    for number in range(CHANGES // 2):
        piece, index = slices[number * 7 % len(slices)], number * 13 % objects.PER_SLICE
        raw = piece.endpoints[index * endpoints.RECORD :][:16]
        yield _replace(piece, index, endpoints.pack(raw, Condition.SERVING))
        yield piece


def _moves(slices: list[EndpointSlice]) -> Iterator[EndpointSlice]:
    """Yield slices in which one endpoint has another address; ``slices`` keeps up."""
    for number in range(CHANGES):
        which, index = number * 7 % len(slices), number * 13 % objects.PER_SLICE
        record = endpoints.pack(objects.address(NEW_ADDRESS + number), objects.HEALTHY)
        slices[which] = _replace(slices[which], index, record)
        yield slices[which]


def _latencies(name: str, reconciler: Reconciler, pieces: Iterable[EndpointSlice]) -> dict[str, list[float]]:
    """Return how many milliseconds each slice took from handed over to written, by the clock and of the processor."""
    taken, worked = [], []
    for change in [Upsert(piece) for piece in pieces]:
        begin, at_work = time.perf_counter_ns(), time.thread_time_ns()
        reconciler.apply([change])
        worked.append((time.thread_time_ns() - at_work) / 1e6)
        taken.append((time.perf_counter_ns() - begin) / 1e6)
    return {f"{name}_ms": taken, f"{name}_cpu_ms": worked}


def _timed(name: str, reconciler: Reconciler, changes: list[Change]) -> dict[str, float]:
    """Apply changes; returns seconds by the clock and of the processor (they differ on a machine that is shared)."""
    begin, worked = time.perf_counter(), time.process_time()
    reconciler.apply(changes)
    return {f"{name}_s": time.perf_counter() - begin, f"{name}_cpu_s": time.process_time() - worked}


def main() -> None:
    """Measure once."""
    cluster = objects.facts()
    changes: list[Change] = [*map(Upsert, cluster), Synced()]
    tables = {name: Counting(kernel.create(spec)) for name, spec in abi.TABLES.items()}
    wires = {f"team-{n % objects.NAMESPACES:02}/pod-{n}": abi.Wire(n + 2, bytes(6)) for n in range(objects.PODS)}
    gc.collect()
    before = _rss_mb()
    reconciler = Reconciler(tables, objects.HERE)
    reconciler.set_wires(wires)
    told = _timed("sync", reconciler, changes)
    told["sync_writes"] = sum(table.writes for table in tables.values())
    assert reconciler.pending == 0, reconciler.problems
    gc.collect()
    gc.freeze()  # as the agent does
    told["state_mb"] = _rss_mb() - before

    state = {fact.ref: fact for fact in cluster}
    large = [fact for fact in cluster if isinstance(fact, EndpointSlice) and fact.service == "service-00000"]
    small = [fact for fact in cluster if isinstance(fact, EndpointSlice) and len(fact.endpoints) == 25 * 17][:50]
    result = _latencies("flip", reconciler, _flips(large)) | _latencies("move", reconciler, _moves(large))
    in_small = [_replace(piece, 3, endpoints.pack(piece.endpoints[51:67], Condition.SERVING)) for piece in small]
    result |= _latencies("small", reconciler, [each for pair in zip(in_small, small, strict=True) for each in pair])
    state.update((piece.ref, piece) for piece in large)

    for table in tables.values():
        table.writes = 0
    fresh = Reconciler(tables, objects.HERE)
    fresh.set_wires(wires)
    told |= _timed("restart", fresh, [*map(Upsert, state.values()), Synced()])
    told["restart_writes"] = sum(table.writes for table in tables.values())
    print(json.dumps({**told, **result}))


if __name__ == "__main__":
    main()
