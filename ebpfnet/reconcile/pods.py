"""``pods`` and the names of pods: a node has few, so the whole table is compiled and compared at every change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from ebpfnet import abi
from ebpfnet.compile.names import shown
from ebpfnet.compile.pods import PodEntry, Wires, compile_pod, pod_id, pod_label, wire_of
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import IPAddress, Pod, Problem, Ref
from ebpfnet.reconcile.diff import diff
from ebpfnet.reconcile.policy.members import ID, group_of

Claims = Mapping[IPAddress, Collection[Ref]]
NO_WIRE = bytes(10)
WIRE = slice(0, len(NO_WIRE))  # of a value of ``pods``: interface and MAC


class PodTables:
    """Keeps ``pods`` equal to the node's pods and their wires."""

    def __init__(self, tables: Mapping[str, Table], group: Callable[[Ref, int | None], int]) -> None:
        self._pods = tables["pods"]
        self._names = tables["names"]
        self._group = group
        self._have: dict[bytes, bytes] | None = None
        self._unknown: dict[bytes, bytes] | None = None  # entries of pods that nobody knew; None: not looked yet
        self.problems: list[Problem] = []
        self.named: dict[int, str] = {}
        self.wires: dict[bytes, bytes] | None = None
        """Address to wire of every pod, as the table has them; None: not known. Replaced, never changed."""

    @property
    def held(self) -> Mapping[bytes, bytes] | None:
        """The table as it is; None: not known now."""
        return self._have

    def look(self) -> Mapping[bytes, bytes]:
        """Return the table, read back if it is not known; raises ``TableError``."""
        if self._have is None:
            self._have = dict(self._pods.items())
        return self._have

    def forget(self) -> None:
        """Read the table back before the next write: something went wrong, or nobody has looked yet."""
        self._have = self.wires = None

    def _keep(self, pods: Iterable[Pod], have: Mapping[bytes, bytes]) -> None:
        """Note which entries belong to pods that nobody knows."""
        known = {pod_id(pod) for pod in pods}
        candidates = have if self._unknown is None else self._unknown
        self._unknown = {
            key: have[key] for key in candidates if key in have and abi.Pod.unpack(have[key]).id not in known
        }

    def _want(self, pods: Iterable[Pod], wires: Wires, have: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        compiled = [
            (entry, pod)
            for pod in sorted(pods, key=lambda pod: pod.ref)
            for entry in self._entries(pod, wire_of(pod, wires), have)
        ]
        self.problems = []
        owner: dict[bytes, tuple[PodEntry, Pod]] = {}
        for entry, pod in compiled:
            first = owner.setdefault(entry.key, (entry, pod))[1]
            if first is not pod:
                text = f"{abi.unpack_address(entry.key)} already belongs to {first.ref}"
                self.problems.append(Problem(pod.ref, "status.podIPs", text))
        # What is in the table stays there; what comes anew waits for room.
        ranked = sorted(owner.values(), key=lambda each: each[0].key not in have)
        unknown = {key: value for key, value in (self._unknown or {}).items() if key not in owner}
        capacity = self._pods.spec.max_entries - len(unknown)
        for entry, pod in ranked[capacity:]:
            text = (
                f"{abi.unpack_address(entry.key)} does not fit into table pods ({self._pods.spec.max_entries} entries)"
            )
            self.problems.append(Problem(pod.ref, "status.podIPs", text))
        self.named = {pod_id(pod): shown(pod_label(pod)) for _, pod in ranked[:capacity]}
        return unknown | {entry.key: entry.value for entry, _ in ranked[:capacity]}

    def _entries(self, pod: Pod, wire: abi.Wire | None, have: Mapping[bytes, bytes]) -> list[PodEntry]:
        current = _groups_of(pod, have)
        groups = {each: self._group(pod.ref, each) for each in set(current)}
        if len(groups) < 2:
            return compile_pod(pod, wire, *groups.values())
        alone = (
            (replace(pod, addresses=(address,)), group) for address, group in zip(pod.addresses, current, strict=True)
        )
        return [entry for each, group in alone for entry in compile_pod(each, wire, groups[group])]

    def _name_claimed(self, pods: Iterable[Pod], want: Mapping[bytes, bytes], claims: Claims) -> None:
        for pod in pods:
            for index, address in enumerate(pod.addresses):
                if address in claims and abi.pack_address(address) in want:
                    owners = ", ".join(sorted(str(ref) for ref in claims[address]))
                    text = f"{address} is a cluster IP of {owners}, too, whose ports lead to its endpoints"
                    self.problems.append(Problem(pod.ref, f"status.podIPs[{index}].ip", text))

    def holds(self, address: IPAddress) -> bool:
        """Say whether an address is a pod's; no while that is not known, for then the pods are settled once more."""
        return self._have is not None and abi.pack_address(address) in self._have

    def settle(self, pods: Collection[Pod], wires: Wires, claims: Claims, *, keep: bool = False) -> None:
        """Write the differences; with ``keep`` entries of pods that nobody knows stay. Raises ``TableError``.

        ``claims`` are the cluster IPs: a pod with the address of one is reached by ports that no service has.
        """
        have = dict(self._pods.items()) if self._have is None else self._have
        self.forget()  # unknown until all of it is written
        if keep:
            self._keep(pods, have)
        else:
            self._unknown = {}
        want = self._want(pods, wires, have)
        self._name_claimed(pods, want, claims)
        change = diff(have, want)
        past = {abi.Pod.unpack(have[key]).id for key in (*change.delete, *change.put) if key in have}
        for identity in {abi.Pod.unpack(value).id for value in change.put.values()}:
            self._names.put(identity.to_bytes(8, "little"), abi.pack_name(self.named[identity]))
        self._pods.delete_batch(change.delete)
        for key, value in change.put.items():
            self._pods.put(key, value)
        still = self.named.keys() | {abi.Pod.unpack(value).id for value in want.values()}
        self._names.delete_batch([identity.to_bytes(8, "little") for identity in past - still])
        self._have = want
        self.wires = {key: value[WIRE] for key, value in want.items()}


def _groups_of(pod: Pod, have: Mapping[bytes, bytes]) -> list[int | None]:
    """Return the group that a pod has in the table, at each of its addresses; None: it is not there.

    They are several where an agent was killed between two addresses. One that is new goes along with another one.
    """
    identity = pod_id(pod).to_bytes(8, "little")
    values = [have.get(abi.pack_address(address)) for address in pod.addresses]
    found = [group_of(value) if value and value[ID] == identity else None for value in values]
    if None not in found:
        return found
    other = next((each for each in found if each is not None), None)
    return [other if each is None else each for each in found]
