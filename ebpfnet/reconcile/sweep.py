"""Connections that are over, that lead astray or whose wire is another one now leave ``flows`` in batches.

A connection is two entries, one for each direction, refreshed together (``bpf/lib/flow.h track``). It is over when both
are; one whose other half is gone (the LRU evicted it, or another connection took its place) is judged alone. The
datapath follows the same time-outs: what is swept here, it would not have used.

A client of UDP may send from one port forever, and its flow lives as long: also one to a backend that its service has
lost, or one that began before its destination was a service. Those are astray, and go with both halves, so that the
next packet chooses anew. So do TCP connections that nobody has answered yet; what is established stays where it is.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, FlowState
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.pods import NO_WIRE

T = TypeVar("T")

SECOND = 1_000_000_000
BATCH = 64  # entries that are looked at again while the guard is held: a few milliseconds
SIZE = abi.Tuple.size()
_KEY = struct.Struct("16s20xB3x")  # source, protocol
_VALUE = struct.Struct("16x16s8xQ8x10s2x10s2xBB6x")  # to.destination, seen_ns, from, deliver, state, flags
_DESTINATION = struct.Struct("16x16s2x4s2x")  # of a key: address; port, protocol and padding as in struct frontend
_ROUTE = struct.Struct("16x16s2x2s12xQ24xBB6x")  # to.destination, its port, service, state, flags
_PROTOCOL = 2  # where the protocol is in what ``_DESTINATION`` yields second
assert {_KEY.size, _DESTINATION.size} == {SIZE}
assert {_VALUE.size, _ROUTE.size} == {abi.Flow.size()}

Wires = Mapping[bytes, bytes] | None
"""Address to wire of every pod of the node, as the table has them; None: not known at this moment."""


class Routes(Protocol):
    """Where packets to services go at this moment."""

    def is_frontend(self, frontend: bytes) -> bool:
        """Say whether packets to a packed ``Frontend`` are translated."""

    def leads_to(self, frontend: bytes, backend: bytes) -> bool:
        """Say whether a packed ``Frontend`` may lead to a packed ``Backend``."""


Way = tuple[bytes, bytes | None]
"""Packed destination of a packet, and the backend that its flow leads to; None: no service's."""


class Flows(Table, Protocol):
    """A table of flows that can be read fast."""

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (joined keys, joined values) of all entries."""


def timeouts(protocol: int) -> tuple[int, int, int]:
    """Return the idle time-outs of a protocol by ``FlowState``, in nanoseconds."""
    if protocol in {abi.Protocol.TCP, abi.Protocol.SCTP}:
        seconds = (abi.TIMEOUT_TCP_NEW_S, abi.TIMEOUT_TCP_ESTABLISHED_S, abi.TIMEOUT_TCP_CLOSING_S)
    else:
        long = abi.TIMEOUT_DATAGRAM_ESTABLISHED_S
        seconds = (abi.TIMEOUT_DATAGRAM_NEW_S, long, long)
    return tuple(value * SECOND for value in seconds)  # type: ignore[return-value]  # three in, three out


_UDP, _TCP = int(abi.Protocol.UDP), int(abi.Protocol.TCP)
_TIMEOUTS = [timeouts(number) for number in range(256)]


class Swept(NamedTuple):
    """What a sweep did."""

    seen: int
    removed: int


def idle(keys: bytes, values: bytes, now_ns: int) -> Iterator[bytes]:
    """Yield the keys (of joined keys and values) of entries that saw no packet for too long."""
    rows = zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True)
    for index, ((_, protocol), (_, seen, _, _, state, _)) in enumerate(rows):
        if now_ns - seen > _TIMEOUTS[protocol][min(state, FlowState.CLOSING)]:
            yield keys[index * SIZE : (index + 1) * SIZE]


def misled(keys: bytes, values: bytes, wires: Wires) -> Iterator[bytes]:
    """Yield the keys of entries that hold another wire for an address than its pod has now.

    A flow that began before its pod had a wire is one of them: the pod's answers would count as spoofed. Flows opened
    on another plugin's wire are not: there nothing depends on it.
    """
    if wires is None:
        return
    wire = wires.get
    rows = zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True)
    for index, ((source, _), (destination, _, from_, deliver, _, flags)) in enumerate(rows):
        if flags & FlowFlag.BESIDE:
            continue
        if from_ != wire(source, NO_WIRE) or deliver != wire(destination, NO_WIRE):
            yield keys[index * SIZE : (index + 1) * SIZE]


def ways(keys: bytes, values: bytes) -> Iterator[tuple[bytes, Way]]:
    """Yield (key, way) of the entries that may be astray: of those who ask, UDP and what is unanswered of TCP."""
    rows = zip(_DESTINATION.iter_unpack(keys), _ROUTE.iter_unpack(values), strict=True)
    for index, ((address, port), (backend, backend_port, service, state, flags)) in enumerate(rows):
        protocol = port[_PROTOCOL]
        if flags & FlowFlag.REPLY or (protocol != _UDP and (protocol != _TCP or state != FlowState.NEW)):
            continue
        way = (address + port, backend + backend_port + b"\0\0" if service else None)
        yield keys[index * SIZE : (index + 1) * SIZE], way


def astray(way: Way, routes: Routes) -> bool:
    """Say whether no packet would take this way now."""
    frontend, backend = way
    return routes.is_frontend(frontend) if backend is None else not routes.leads_to(frontend, backend)


def _reverse(key: bytes) -> bytes:
    """Return the packed tuple of the answers."""
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


def doomed(flows: Table, key: bytes, now_ns: int, wires: Wires, routes: Routes | None) -> list[bytes]:
    """Return what goes with a key, as the table is at this moment: nothing, the entry, or both halves."""
    value = flows.get(key)
    if value is None:
        return []
    if any(misled(key, value, wires)):
        return [key]
    other_key = _reverse(value[:SIZE])
    other = flows.get(other_key)
    if other is not None and other[:SIZE] != _reverse(key):
        other = None  # another connection's
    if routes and any(astray(way, routes) for _, way in ways(key, value)):
        return [key] if other is None else [other_key, key]  # or an answer would restore what is gone
    over = any(idle(key, value, now_ns)) and (other is None or any(idle(other_key, other, now_ns)))
    return [key] if over else []


def sweep(
    flows: Flows,
    now_ns: int,
    wires: Callable[[], Wires] = lambda: None,
    guard: contextlib.AbstractContextManager[Any] | None = None,
    routes: Routes | None = None,
) -> Swept:
    """Remove what is over, looking again just before, so that a connection which woke up stays.

    ``wires`` and ``routes`` are asked under ``guard``, with which pods and services do not change between the second
    look and the removal. It is held for a few milliseconds at a time. Raises ``TableError``.
    """
    seen = removed = 0
    pending: dict[bytes, None] = {}
    asking: dict[Way, list[bytes]] = {}
    first = wires()
    guard = guard or contextlib.nullcontext()
    for keys, values in flows.chunks():
        seen += len(keys) // SIZE
        pending |= dict.fromkeys(idle(keys, values, now_ns))
        pending |= dict.fromkeys(misled(keys, values, first))
        if routes:
            for key, way in ways(keys, values):
                asking.setdefault(way, []).append(key)
    for asked in _batches(list(asking)):
        with guard:
            lost = [way for way in asked if routes and astray(way, routes)]
        for way in lost:
            pending |= dict.fromkeys(asking[way])
    for batch in _batches(list(pending)):
        with guard:
            now = wires()
            gone = dict.fromkeys(each for key in batch for each in doomed(flows, key, now_ns, now, routes))
            flows.delete_batch(list(gone))
        removed += len(gone)
    return Swept(seen, removed)


def _batches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
