"""Connections that are over leave ``flows`` in batches.

Both directions of a connection are refreshed together (``bpf/lib/flow.h track``), so each entry is judged by itself.
The datapath follows the same time-outs: what is swept here, it would not have used.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.abi import FlowState, Protocol
from ebpfnet.maps.kernel import KernelTable

SECOND = 1_000_000_000
BATCH = 256
_KEY = struct.Struct("36xB3x")
_VALUE = struct.Struct("40xQ8xI8xI8xB7x")  # seen_ns, from.ifindex, deliver.ifindex, state
assert _VALUE.size == abi.Flow.size()


def timeouts(protocol: int) -> tuple[int, int, int]:
    """Return the idle time-outs of a protocol by ``FlowState``, in nanoseconds."""
    if protocol in {Protocol.TCP, Protocol.SCTP}:
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


def over(keys: bytes, values: bytes, now_ns: int, gone: Collection[int] = ()) -> Iterator[bytes]:
    """Yield the keys (of joined keys and values) that are over, or that use an interface in ``gone``."""
    size = abi.Tuple.size()
    rows = zip(_KEY.iter_unpack(keys), _VALUE.iter_unpack(values), strict=True)
    for index, ((protocol,), (seen, from_, deliver, state)) in enumerate(rows):
        limit = _TIMEOUTS[protocol][min(state, FlowState.CLOSING)]
        if now_ns - seen > limit or (gone and (from_ in gone or deliver in gone)):
            yield keys[index * size : (index + 1) * size]


def sweep(flows: KernelTable, now_ns: int, gone: Collection[int] = ()) -> Swept:
    """Remove what is over, looking again just before, so that a connection which woke up stays."""
    seen = removed = 0
    pending: list[bytes] = []
    for keys, values in flows.chunks():
        seen += len(keys) // abi.Tuple.size()
        pending += over(keys, values, now_ns, gone)
    for start in range(0, len(pending), BATCH):
        still = [
            key
            for key in pending[start : start + BATCH]
            if (value := flows.get(key)) is not None and any(over(key, value, now_ns, gone))
        ]
        flows.delete_batch(still)
        removed += len(still)
    return Swept(seen, removed)
