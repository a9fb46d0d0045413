"""How many ready endpoints each service has on this node: what its load balancer asks the health check's port for."""

from __future__ import annotations

from typing import NamedTuple

from ebpfnet.model.endpoints import RECORD, Condition
from ebpfnet.model.facts import EndpointSlice, Ref


class _Key(NamedTuple):
    namespace: str
    service: str
    ipv6: bool


class LocalReady:
    """Counts by address, as kube-proxy does (``LocalReadyEndpoints`` of pkg/proxy/endpointschangetracker.go).

    Only slices with a ready endpoint on the node are kept, as packed records: a few of any number.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._keys: dict[Ref, _Key] = {}
        self._found: dict[_Key, dict[Ref, bytes]] = {}

    def set(self, found: EndpointSlice) -> bool:
        """Take a slice in; returns whether a count may be another one now."""
        key = _Key(found.ref.namespace, found.service, found.ipv6)
        records = self._records(found)
        if self._found.get(key, {}).get(found.ref, b"") == records and self._keys.get(found.ref, key) == key:
            return False
        self.drop(found.ref)
        if records:
            self._keys[found.ref] = key
            self._found.setdefault(key, {})[found.ref] = records
        return True

    def drop(self, ref: Ref) -> bool:
        """Take a slice out; returns whether a count may be another one now."""
        key = self._keys.pop(ref, None)
        if key is None:
            return False
        slices = self._found[key]
        del slices[ref]
        if not slices:
            del self._found[key]
        return True

    def count(self, service: Ref, *, ipv6: bool) -> int:
        """Return the number of ready endpoints of a family on this node."""
        slices = self._found.get(_Key(service.namespace, service.name, ipv6), {}).values()
        return len({run[start : start + 16] for run in slices for start in range(0, len(run), RECORD)})

    def _records(self, found: EndpointSlice) -> bytes:
        if self._node not in found.nodes or not found.ports:  # a comparison each, and nearly always all there is to do
            return b""
        run = found.endpoints
        starts = [index * RECORD for index, node in enumerate(found.nodes) if node == self._node]
        ready = [run[start : start + RECORD] for start in starts if run[start + RECORD - 1] & Condition.READY]
        return run if len(ready) == len(found.nodes) else b"".join(ready)  # the slice's own: nothing is held twice
