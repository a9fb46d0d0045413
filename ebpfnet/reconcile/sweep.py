"""Connections that are over, that lead astray or whose wire is another one now leave ``flows`` in batches.

A connection is two entries, one for each direction, refreshed together (``bpf/lib/flow.h track``). It is over when both
are; one whose other half is gone (the LRU evicted it, or another connection took its place) is judged alone. The
datapath follows the same time-outs: what is swept here, it would not have used.

A client of UDP may send from one port forever, and its flow lives as long: also one to a backend that does not serve
any more, or one that began before its destination was a service. Those are astray, and go with both halves, so that the
next packet chooses anew (as pkg/proxy/conntrack of Kubernetes has it; we don't wait for another backend). So do TCP and
SCTP connections that nobody has answered yet and whose backend would not be chosen now. What is established stays where
it is, also while its backend terminates; once that is in no slice of the service any more, both halves are marked
``GONE``, and the next packet of either side is answered with a reset.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, FlowState
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.pods import NO_WIRE
from ebpfnet.reconcile.routes import Fate

T = TypeVar("T")

SECOND = 1_000_000_000
BATCH = 64  # entries that are looked at again while the guard is held: a few milliseconds
SIZE = abi.Tuple.size()
_KEY = struct.Struct("16s20xB3x")  # source, protocol
_VALUE = struct.Struct("16x16s8xQ16x10s2x10s2xBB30x")  # to.destination, seen_ns, from, deliver, state, flags
_DESTINATION = struct.Struct("16x16s2x4s2x")  # of a key: address; port, protocol and padding as in struct frontend
_ROUTE = struct.Struct("16x16s2x2s12xQ32xBB30x")  # to.destination, its port, service, state, flags
_FLAGS = 89  # where the flags are in a value
_PROTOCOL = 2  # where the protocol is in what ``_DESTINATION`` yields second
assert {_KEY.size, _DESTINATION.size} == {SIZE}
assert {_VALUE.size, _ROUTE.size} == {abi.Flow.size()}

Wires = Mapping[bytes, bytes] | None
"""Address to wire of every pod of the node, as the table has them; None: not known at this moment."""


class Routes(Protocol):
    """Where packets to services go at this moment."""

    def is_frontend(self, frontend: bytes) -> bool:
        """Say whether packets to a packed ``Frontend`` are translated."""

    def fate(self, frontend: bytes, backend: bytes) -> Fate:
        """Say what a packed ``Backend`` is to a packed ``Frontend``, or to the endpoint set of a packed id."""


class Stage(enum.IntEnum):
    """What a flow asks of its backend."""

    DATAGRAMS = 0
    UNANSWERED = 1
    ESTABLISHED = 2


Way = tuple[bytes, bytes | None, Stage]
"""Packed destination of a packet, and the backend that its flow leads to; None: no service's. Where a socket was
connected to the backend itself (bpf/connect.c), the packed id of the endpoint set is in the destination's place."""


class Flows(Table, Protocol):
    """A table of flows that can be read fast."""

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (joined keys, joined values) of all entries."""

    def replace(self, key: bytes, value: bytes) -> bool:
        """Put a value in the place of another; False when there is none."""


_STREAM = (abi.TIMEOUT_TCP_NEW_S, abi.TIMEOUT_TCP_ESTABLISHED_S, abi.TIMEOUT_TCP_CLOSING_S)
_OPEN = {int(FlowState.ESTABLISHED), int(FlowState.HALF_CLOSED)}


def timeouts(protocol: int) -> tuple[int, int, int, int]:
    """Return the idle time-outs of a protocol by ``FlowState``, in nanoseconds."""
    if protocol in {abi.Protocol.TCP, abi.Protocol.SCTP}:
        seconds = (*_STREAM, abi.TIMEOUT_TCP_HALF_CLOSED_S)
    else:
        long = abi.TIMEOUT_DATAGRAM_ESTABLISHED_S
        seconds = (abi.TIMEOUT_DATAGRAM_NEW_S, long, long, long)
    return tuple(value * SECOND for value in seconds)  # type: ignore[return-value]  # four in, four out


_UDP, _TCP, _SCTP = int(abi.Protocol.UDP), int(abi.Protocol.TCP), int(abi.Protocol.SCTP)
_REPLY, _NAT, _HOST, _GONE = (int(each) for each in (FlowFlag.REPLY, FlowFlag.NAT, FlowFlag.HOST, FlowFlag.GONE))
_LOOPBACK = (1).to_bytes(4, "little") + bytes(6)  # as a wire: always number 1, without a MAC
_TIMEOUTS = [timeouts(number) for number in range(256)]


class Swept(NamedTuple):
    """What a sweep did: entries seen, removed, and marked for the end of their connections."""

    seen: int
    removed: int
    ended: int = 0


def idle(keys: bytes, values: bytes, now_ns: int) -> Iterator[bytes]:
    """Yield the keys (of joined keys and values) of entries that saw no packet for too long."""
    rows = zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True)
    for index, ((_, protocol), (_, seen, _, _, state, _)) in enumerate(rows):
        if now_ns - seen > _TIMEOUTS[protocol][min(state, FlowState.HALF_CLOSED)]:
            yield keys[index * SIZE : (index + 1) * SIZE]


def misled(keys: bytes, values: bytes, wires: Wires) -> Iterator[bytes]:
    """Yield the keys of entries that hold another wire for an address than its pod has now.

    A flow that began before its pod had a wire is one of them: the pod's answers would count as spoofed. Flows opened
    on another plugin's wire are not: there nothing depends on it. Of what the node asked itself, one end is an
    interface of the host's, and both are when it answers itself, over loopback.
    """
    if wires is None:
        return
    wire = wires.get
    rows = zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True)
    for index, ((source, _), (destination, _, from_, deliver, _, flags)) in enumerate(rows):
        if flags & FlowFlag.BESIDE:
            continue
        if flags & _HOST:
            address, held = (source, from_) if flags & _REPLY else (destination, deliver)
            misses = held != wire(address, _LOOPBACK if held == _LOOPBACK else NO_WIRE)
        else:
            misses = from_ != wire(source, NO_WIRE) or deliver != wire(destination, NO_WIRE)
        if misses:
            yield keys[index * SIZE : (index + 1) * SIZE]


def ways(keys: bytes, values: bytes) -> Iterator[tuple[bytes, Way]]:
    """Yield (key, way) of the entries that may be astray, of those who ask."""
    rows = zip(_DESTINATION.iter_unpack(keys), _ROUTE.iter_unpack(values), strict=True)
    for index, ((address, port), (backend, backend_port, service, state, flags)) in enumerate(rows):
        protocol = port[_PROTOCOL]
        if flags & _REPLY:
            continue
        by_socket = service and not flags & _NAT
        if protocol == _UDP:
            stage = Stage.DATAGRAMS
        elif protocol not in {_TCP, _SCTP}:
            continue
        elif state == FlowState.NEW:
            if by_socket:  # its next packet would go the same way
                continue
            stage = Stage.UNANSWERED
        elif state in _OPEN and service and not flags & _GONE:
            stage = Stage.ESTABLISHED
        else:
            continue
        asked = service.to_bytes(8, "little") if by_socket else address + port
        way = (asked, backend + backend_port + b"\0\0" if service else None, stage)
        yield keys[index * SIZE : (index + 1) * SIZE], way


def astray(way: Way, routes: Routes) -> bool:
    """Say whether no packet should take this way now."""
    frontend, backend, stage = way
    if backend is None:
        return routes.is_frontend(frontend)
    fate = routes.fate(frontend, backend)
    match stage:
        case Stage.DATAGRAMS:
            return fate > Fate.SERVING
        case Stage.UNANSWERED:
            return fate > Fate.CHOSEN
        case Stage.ESTABLISHED:  # a service that is gone as a whole does not end what it began
            return fate == Fate.GONE


def _reverse(key: bytes) -> bytes:
    """Return the packed tuple of the answers."""
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


class Doom(NamedTuple):
    """What is to be done with entries: ``remove`` them, or mark them to ``end``."""

    remove: list[bytes]
    end: list[tuple[bytes, bytes]]


def doomed(flows: Table, key: bytes, now_ns: int, wires: Wires, routes: Routes | None) -> Doom:
    """Return what is to be done because of a key, as the table is at this moment."""
    value = flows.get(key)
    if value is None:
        return Doom([], [])
    if any(misled(key, value, wires)):
        return Doom([key], [])
    other_key = _reverse(value[:SIZE])
    other = flows.get(other_key)
    if other is not None and other[:SIZE] != _reverse(key):
        other = None  # another connection's
    both = [(key, value)] if other is None else [(other_key, other), (key, value)]  # or an answer would restore one
    for _, way in ways(key, value) if routes else ():
        if routes and astray(way, routes):
            return Doom([], both) if way[2] == Stage.ESTABLISHED else Doom([each for each, _ in both], [])
    over = any(idle(key, value, now_ns)) and (other is None or any(idle(other_key, other, now_ns)))
    return Doom([key] if over else [], [])


def _ended(value: bytes) -> bytes:
    return value[:_FLAGS] + bytes((value[_FLAGS] | _GONE,)) + value[_FLAGS + 1 :]


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
    seen = removed = ended = 0
    pending: dict[bytes, None] = {}
    known: dict[Way, bool] = {}  # whether a way is astray
    first = wires()
    guard = guard or contextlib.nullcontext()
    for keys, values in flows.chunks():
        seen += len(keys) // SIZE
        pending |= dict.fromkeys(idle(keys, values, now_ns))
        pending |= dict.fromkeys(misled(keys, values, first))
        if routes:
            going = list(ways(keys, values))
            for asked in _batches([way for way in dict.fromkeys(way for _, way in going) if way not in known]):
                with guard:
                    known |= {way: astray(way, routes) for way in asked}
            pending |= dict.fromkeys(key for key, way in going if known[way])
    for batch in _batches(list(pending)):
        with guard:
            now = wires()
            dooms = [doomed(flows, key, now_ns, now, routes) for key in batch]
            gone = dict.fromkeys(key for doom in dooms for key in doom.remove)
            flows.delete_batch(list(gone))
            # The rest of an entry is the datapath's: what it adds in this moment, a packet or two, is lost.
            ended += sum(flows.replace(key, _ended(value)) for doom in dooms for key, value in doom.end)
        removed += len(gone)
    return Swept(seen, removed, ended)


def _batches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
