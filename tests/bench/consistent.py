"""How long one change of a consistent service's 5,000 backends takes to the kernel's tables."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

from ebpfnet import abi
from ebpfnet.compile.maglev import LARGEST_SET
from ebpfnet.maps import kernel
from ebpfnet.model import endpoints
from ebpfnet.model.endpoints import Condition
from ebpfnet.model.facts import EndpointSlice, Kind, Ref, Service, ServicePort, SlicePort, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from tests.bench import objects
from tests.bench.figures import Figure, at_most, percentile

CHANGES = 300


def _slice(number: int) -> EndpointSlice:
    first = number * objects.PER_SLICE
    each = [endpoints.pack(objects.address(first + index), objects.HEALTHY) for index in range(objects.PER_SLICE)]
    ref = Ref(Kind.ENDPOINT_SLICE, "default", f"web-{number}")
    return EndpointSlice(ref, "web", False, (SlicePort("http", abi.Protocol.TCP, 8080),), b"".join(each))


def _with(piece: EndpointSlice, index: int, record: bytes) -> EndpointSlice:
    at = index * endpoints.RECORD
    run = piece.endpoints[:at] + record + piece.endpoints[at + endpoints.RECORD :]
    return EndpointSlice(piece.ref, piece.service, piece.ipv6, piece.ports, run)


def _changes(slices: list[EndpointSlice]) -> Iterator[tuple[str, EndpointSlice]]:
    """Yield slices in which one endpoint is not ready, ready again, and has another address."""
    for number in range(CHANGES):
        which, index = number * 7 % len(slices), number * 13 % objects.PER_SLICE
        piece = slices[which]
        raw = piece.endpoints[index * endpoints.RECORD :][:16]
        yield "one goes", _with(piece, index, endpoints.pack(raw, Condition.SERVING))
        yield "one comes", piece
        moved = endpoints.pack(objects.address(LARGEST_SET + number), objects.HEALTHY)
        slices[which] = _with(piece, index, moved)
        yield "one is another", slices[which]


def run() -> list[Figure]:
    """Measure single changes."""
    tables = {name: kernel.create(spec) for name, spec in abi.TABLES.items()}
    reconciler = Reconciler(tables, objects.HERE)
    ports = (ServicePort("http", abi.Protocol.TCP, 80),)
    service = Service(
        Ref(Kind.SERVICE, "default", "web"), (IPv4Address("172.16.0.1"),), ports, objects.CREATED, consistent=True
    )
    slices = [_slice(number) for number in range(LARGEST_SET // objects.PER_SLICE)]
    reconciler.apply([Upsert(service), *map(Upsert, slices)])
    begin = time.perf_counter_ns()
    reconciler.apply([Synced()])
    first = (time.perf_counter_ns() - begin) / 1e6
    assert reconciler.pending == 0, reconciler.problems
    gc.collect()
    gc.freeze()  # as the agent does
    taken: dict[str, list[float]] = {}
    worked: dict[str, list[float]] = {}
    for name, piece in _changes(slices):
        change = [Upsert(piece)]
        begin, at_work = time.perf_counter_ns(), time.thread_time_ns()
        reconciler.apply(change)
        worked.setdefault(name, []).append((time.thread_time_ns() - at_work) / 1e6)
        taken.setdefault(name, []).append((time.perf_counter_ns() - begin) / 1e6)
    head = f"consistent: {LARGEST_SET:,} backends,"
    found = [Figure(f"{head} first table", first, "ms")]
    for name, values in taken.items():
        found += [
            at_most(f"{head} {name}, p50", percentile(values, 50), "ms", 10),
            Figure(f"{head} {name}, p50 of processor time", percentile(worked[name], 50), "ms"),
            Figure(f"{head} {name}, p99", percentile(values, 99), "ms"),
        ]
    return found
