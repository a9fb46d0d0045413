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

    Only slices with a ready endpoint on the node are kept: a few of any number.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._keys: dict[Ref, _Key] = {}
        self._found: dict[_Key, dict[Ref, frozenset[bytes]]] = {}

    def set(self, found: EndpointSlice) -> bool:
        """Take a slice in; returns whether a count may be another one now."""
        key = _Key(found.ref.namespace, found.service, found.ipv6)
        addresses = self._addresses(found)
        if self._found.get(key, {}).get(found.ref, frozenset()) == addresses and self._keys.get(found.ref, key) == key:
            return False
        self.drop(found.ref)
        if addresses:
            self._keys[found.ref] = key
            self._found.setdefault(key, {})[found.ref] = addresses
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
        slices = self._found.get(_Key(service.namespace, service.name, ipv6))
        return len(frozenset().union(*slices.values())) if slices else 0

    def _addresses(self, found: EndpointSlice) -> frozenset[bytes]:
        if self._node not in found.nodes or not found.ports:  # a comparison each, and nearly always all there is to do
            return frozenset()
        run = found.endpoints
        starts = (index * RECORD for index, node in enumerate(found.nodes) if node == self._node)
        return frozenset(run[start : start + 16] for start in starts if run[start + 16] & Condition.READY)
