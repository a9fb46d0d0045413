"""Connections that are over, and those whose wire is another one now, leave ``flows`` in batches.

A connection is two entries, one for each direction, refreshed together (``bpf/lib/flow.h track``). It is over when both
are; one whose other half is gone (the LRU evicted it, or another connection took its place) is judged alone. The
datapath follows the same time-outs: what is swept here, it would not have used.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, FlowState
from ebpfnet.maps.table import Table
from ebpfnet.reconcile.pods import NO_WIRE

SECOND = 1_000_000_000
BATCH = 256
SIZE = abi.Tuple.size()
_KEY = struct.Struct("16s20xB3x")  # source, protocol
_VALUE = struct.Struct("16x16s8xQ8x10s2x10s2xBB6x")  # to.destination, seen_ns, from, deliver, state, flags
assert (_KEY.size, _VALUE.size) == (SIZE, abi.Flow.size())

Wires = Mapping[bytes, bytes] | None
"""Address to wire of every pod of the node, as the table has them; None: not known at this moment."""


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


def _reverse(key: bytes) -> bytes:
    """Return the packed tuple of the answers."""
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


def over(flows: Table, key: bytes, now_ns: int, wires: Wires) -> bool:
    """Say whether an entry is misled, or idle with its other half, as the table is at this moment."""
    value = flows.get(key)
    if value is None:
        return False
    if any(misled(key, value, wires)):
        return True
    if not any(idle(key, value, now_ns)):
        return False
    other_key = _reverse(value[:SIZE])
    other = flows.get(other_key)
    return other is None or other[:SIZE] != _reverse(key) or any(idle(other_key, other, now_ns))


def sweep(
    flows: Flows,
    now_ns: int,
    wires: Callable[[], Wires] = lambda: None,
    guard: contextlib.AbstractContextManager[Any] | None = None,
) -> Swept:
    """Remove what is over, looking again just before, so that a connection which woke up stays.

    ``wires`` is asked anew under ``guard``, with which pods do not change between the second look and the removal.
    Raises ``TableError``.
    """
    seen = removed = 0
    pending: dict[bytes, None] = {}
    first = wires()
    for keys, values in flows.chunks():
        seen += len(keys) // SIZE
        pending |= dict.fromkeys(idle(keys, values, now_ns))
        pending |= dict.fromkeys(misled(keys, values, first))
    candidates = list(pending)
    for start in range(0, len(candidates), BATCH):
        with guard or contextlib.nullcontext():
            now = wires()
            still = [key for key in candidates[start : start + BATCH] if over(flows, key, now_ns, now)]
            flows.delete_batch(still)
        removed += len(still)
    return Swept(seen, removed)
