"""Every node of the cluster with tables and programs of its own in the kernel, attached to nothing.

The tables are filled by the same compile and reconcile code as on a real node; pods get interface numbers and MACs that
exist nowhere. A node is brought up when it is first needed, and what a node that went used is used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from ebpfnet import abi
from ebpfnet.datapath import load, testrun
from ebpfnet.datapath.build import Object
from ebpfnet.maps import kernel
from ebpfnet.maps.kernel import KernelTable
from ebpfnet.model.facts import Change, Delete, Fact, IPNetwork, Pod, Problem, Ref, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.simulate import packets
from ebpfnet.simulate.directory import Directory, label

SIZES = {"flows": 16_384, "fragments": 128}
FIRST_IFINDEX = 1001
UPLINK_IFINDEX = 2
EAGER_NODES = 16


class Frontend(NamedTuple):
    """A service's port as a node's tables have it: its name for people and its backends, ``IP:PORT``."""

    label: str
    backends: tuple[str, ...]


class Equipment(NamedTuple):
    """What a node needs of the kernel; dear to make, so it is kept."""

    tables: dict[str, KernelTable]
    programs: dict[str, load.Program]


class Node:
    """One node's datapath."""

    def __init__(self, name: str, equipment: Equipment) -> None:
        self.name = name
        self.equipment = equipment
        self.wires: dict[str, abi.Wire] = {}
        self.pods: dict[int, str] = {}
        self.reconciler = Reconciler(equipment.tables, name)
        self._fds = {program.name: program.fd for program in equipment.programs.values()}
        self._flows = equipment.tables["flows"]
        self._frontends: dict[bytes, Frontend | None] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        """Bring the tables up to date."""
        self._frontends.clear()
        self.reconciler.apply(changes)

    def set_wires(self, wires: Mapping[str, abi.Wire]) -> None:
        """Say which pods are here."""
        self.wires = dict(wires)
        self.pods = {wire.ifindex: name for name, wire in wires.items()}
        self.reconciler.set_wires(wires)

    def run(self, program: str, packet: bytes, ifindex: int) -> testrun.Result:
        """Send a packet through one program."""
        return testrun.run(self._fds[program], packet, ingress_ifindex=ifindex)

    def remembered(self, key: bytes) -> bytes | None:
        """Return what ``flows`` says a packet with this tuple becomes, or None."""
        raw = self._flows.get(key)
        return None if raw is None else raw[: len(key)]

    def forget(self, key: bytes) -> None:
        """Remove one direction of a flow."""
        self._flows.delete(key)

    def frontend(self, key: bytes) -> Frontend | None:
        """Return the service that a packet with this tuple is for, or None."""
        entry = key[16:32] + key[34:37] + b"\0"
        if entry not in self._frontends:
            self._frontends[entry] = self._read_frontend(entry)
        return self._frontends[entry]

    def _read_frontend(self, entry: bytes) -> Frontend | None:
        tables = self.equipment.tables
        raw = tables["services"].get(entry)
        if raw is None:
            return None
        service = abi.Service.unpack(raw)
        name = tables["names"].get(service.id.to_bytes(8, "little"))
        slots = (abi.Slot(service.id, service.generation, index).pack() for index in range(service.count))
        found = [value for slot in slots if (value := tables["slots"].get(slot)) is not None]
        backends = sorted(packets.show_end(value[:16], value[16:18]) for value in found)
        return Frontend(abi.unpack_name(name) if name else "", tuple(backends))


class World:
    """All nodes. Not thread-safe; close it."""

    def __init__(self, compiled: Object, inside: Iterable[IPNetwork] = ()) -> None:
        self._compiled = compiled
        self._inside = tuple(inside)
        self._nodes: dict[str, Node] = {}
        self._spare: list[Equipment] = []
        self._wires: dict[Ref, abi.Wire] = {}
        self._next_ifindex = FIRST_IFINDEX
        self.facts: dict[Ref, Fact] = {}
        self.directory = Directory(self._inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back to the kernel."""
        self._retire(list(self._nodes))
        for equipment in self._spare:
            for program in equipment.programs.values():
                program.close()
            for table in equipment.tables.values():
                table.close()
        self._spare.clear()

    def reset(self) -> None:
        """Forget the cluster; tables and programs stay for the next one."""
        self._retire(list(self._nodes))
        self._wires.clear()
        self._next_ifindex = FIRST_IFINDEX
        self.facts.clear()
        self.directory = Directory(self._inside)

    def apply(self, changes: Iterable[Change]) -> None:
        """Take changes in; nodes that are up follow at once, incrementally."""
        changes = [change for change in changes if isinstance(change, Upsert | Delete)]
        touched: set[str] = set()
        for change in changes:
            match change:
                case Upsert(fact):
                    touched |= {self._node_of(self.facts.get(fact.ref)), self._node_of(fact)}
                    self.facts[fact.ref] = fact
                    self.directory.put(fact)
                case Delete(ref):
                    touched.add(self._node_of(self.facts.pop(ref, None)))
                    self.directory.drop(ref)
        there = set(self.directory.node_names())
        self._retire([name for name in self._nodes if name not in there])
        for name, node in self._nodes.items():
            if name in touched:
                node.set_wires(self._wires_of(name))
            node.apply(changes)

    @staticmethod
    def _node_of(fact: Fact | None) -> str:
        return fact.node if isinstance(fact, Pod) else ""

    def load(self) -> None:
        """Bring the nodes up now, the first few of a large cluster; the others when a packet gets there."""
        for name in self.directory.node_names()[:EAGER_NODES]:
            self.node(name)

    def node(self, name: str) -> Node:
        """Return a node of the directory, brought up. Raises ``LoadFailed``, ``TableError``."""
        if name not in self._nodes:
            node = Node(name, self._spare.pop() if self._spare else self._equip())
            node.set_wires(self._wires_of(name))
            node.apply([*map(Upsert, self.facts.values()), Synced()])
            self._nodes[name] = node
        return self._nodes[name]

    @property
    def problems(self) -> list[Problem]:
        """What the nodes' own compilation refused, each problem once."""
        return sorted({problem for node in self._nodes.values() for problem in node.reconciler.problems}, key=str)

    def _equip(self) -> Equipment:
        tables: dict[str, KernelTable] = {}
        try:
            for name, spec in abi.TABLES.items():
                tables[name] = kernel.create(spec._replace(max_entries=SIZES.get(name, spec.max_entries)))
            return Equipment(tables, load.load(self._compiled, tables))
        except Exception:
            for table in tables.values():
                table.close()
            raise

    def _retire(self, names: Iterable[str]) -> None:
        self._spare += [self._nodes.pop(name).equipment for name in names]

    def _wires_of(self, name: str) -> dict[str, abi.Wire]:
        pods = [pod for pod in self.directory.pods.values() if pod.node == name and not pod.host_network]
        return {label(pod): self._wire(pod.ref) for pod in pods}

    def _wire(self, ref: Ref) -> abi.Wire:
        if ref not in self._wires:
            self._wires[ref] = abi.Wire(self._next_ifindex, b"\x02\xeb" + self._next_ifindex.to_bytes(4, "big"))
            self._next_ifindex += 1
        return self._wires[ref]
