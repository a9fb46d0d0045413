"""``pods`` and the names of pods: a node has few, so the whole table is compiled and compared at every change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.pods import compile_pod, pod_id, pod_label
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Pod, Problem
from ebpfnet.reconcile.diff import diff


class PodTables:
    """Keeps ``pods`` equal to the node's pods and their wires."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._pods = tables["pods"]
        self._names = tables["names"]
        self._have: dict[bytes, bytes] | None = None
        self.problems: list[Problem] = []
        self.named: dict[int, str] = {}

    def forget(self) -> None:
        """Read the table back before the next write: something went wrong, or nobody has looked yet."""
        self._have = None

    def _want(self, pods: Iterable[Pod], wires: Mapping[str, abi.Wire]) -> dict[bytes, bytes]:
        want: dict[bytes, bytes] = {}
        owner: dict[bytes, Pod] = {}
        self.problems = []
        self.named = {}
        for pod in sorted(pods, key=lambda pod: pod.ref):
            for key, value in compile_pod(pod, wires.get(pod_label(pod))):
                if key in want:
                    text = f"{abi.unpack_address(key)} already belongs to {owner[key].ref}"
                    self.problems.append(Problem(pod.ref, "status.podIPs", text))
                    continue
                want[key], owner[key] = value, pod
                self.named[pod_id(pod)] = pod_label(pod)
        return want

    def settle(self, pods: Iterable[Pod], wires: Mapping[str, abi.Wire]) -> set[int]:
        """Write the differences; returns the interfaces that no pod has any more. Raises ``TableError``."""
        want = self._want(pods, wires)
        if self._have is None:
            self._have = dict(self._pods.items())
        change = diff(self._have, want)
        before = {abi.Pod.unpack(value).wire.ifindex for value in self._have.values()}
        stale = {abi.Pod.unpack(self._have[key]).id for key in (*change.delete, *change.put) if key in self._have}
        have, self._have = self._have, None  # unknown until all of it is written
        for identity in {abi.Pod.unpack(value).id for value in change.put.values()}:
            self._names.put(identity.to_bytes(8, "little"), abi.pack_name(self.named[identity]))
        for key, value in change.put.items():
            self._pods.put(key, value)
        self._pods.delete_batch(change.delete)
        self._names.delete_batch([identity.to_bytes(8, "little") for identity in stale - self.named.keys()])
        self._have = {key: value for key, value in {**have, **change.put}.items() if key in want}
        return before - {abi.Pod.unpack(value).wire.ifindex for value in want.values()}
