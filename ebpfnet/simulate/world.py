"""Every node of the cluster with tables and programs of its own in the kernel, attached to nothing.

The tables are filled by the same compile and reconcile code as on a real node; pods get interface numbers and MACs that
exist nowhere. A node is brought up when it is first needed, and what a node that went used is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Self

from ebpfnet import abi
from ebpfnet.datapath import load, testrun
from ebpfnet.datapath.build import Object
from ebpfnet.datapath.build import Program as Code
from ebpfnet.maps import kernel
from ebpfnet.maps.kernel import KernelTable
from ebpfnet.model.facts import Change, Delete, Fact, IPAddress, IPNetwork, Pod, Problem, Ref, Synced, Upsert
from ebpfnet.model.host import Host
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.simulate import network, packets
from ebpfnet.simulate.directory import Directory, label

SIZES = {"flows": 16_384, "affinity": 4_096, "usage": 4_096, "fragments": 128}
FIRST_IFINDEX = 1001
UPLINK_IFINDEX = 999
EAGER_NODES = 16


class Frontend(NamedTuple):
    """A service's port as a node's tables have it for one kind of client.

    ``label`` is its name for people, ``local`` whether only this node's endpoints are meant, ``backends`` are IP:PORT.
    ``direct``: those on other nodes answer the client themselves.
    """

    label: str
    local: bool
    affinity_s: int
    backends: tuple[str, ...]
    direct: bool = False


Choice = Callable[[Iterable[IPAddress], Iterable[IPAddress]], tuple[IPAddress, ...]]


def primary_alone(_: Iterable[IPAddress], primary: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Serve NodePorts at a node's primary addresses."""
    return tuple(primary)


class Flags(NamedTuple):
    """What an agent's flags of these names say; ``nodeport_addresses`` chooses of a node's own and its primary ones."""

    service_cidrs: tuple[IPNetwork, ...] = ()
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    external_ip_cidrs: tuple[IPNetwork, ...] = ()
    nodeport_addresses: Choice = primary_alone


NO_FLAGS = Flags()


class Equipment(NamedTuple):
    """What a node needs of the kernel; dear to make, so it is kept. A program is loaded when a packet gets to it."""

    tables: dict[str, KernelTable]
    codes: dict[str, Code]
    loaded: dict[str, load.Program]

    def program(self, name: str) -> int:
        """Return a program's descriptor. Raises ``LoadFailed``."""
        if name not in self.loaded:
            self.loaded[name] = load.load_one(self.codes[name], self.tables)
        return self.loaded[name].fd


class Node:
    """One node's datapath."""

    def __init__(self, name: str, equipment: Equipment) -> None:
        self.name = name
        self.equipment = equipment
        self.wires: dict[str, abi.Wire] = {}
        self.pods: dict[int, str] = {}
        self.reconciler = Reconciler(equipment.tables, name)
        self.host = Host()
        self._flows = equipment.tables["flows"]
        self._frontends: dict[tuple[bytes, bool], Frontend | None] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        """Bring the tables up to date."""
        self._frontends.clear()
        self.reconciler.apply(changes)

    def set_host(self, host: Host) -> None:
        """Say what the node is to services."""
        self._frontends.clear()
        self.host = host
        self.reconciler.set_host(host)

    def set_wires(self, wires: Mapping[str, abi.Wire]) -> None:
        """Say which pods are here."""
        self.wires = dict(wires)
        self.pods = {wire.ifindex: name for name, wire in wires.items()}
        self.reconciler.set_wires(wires)

    def run(self, program: str, packet: bytes, ifindex: int) -> testrun.Result:
        """Send a packet through one program (``LoadFailed``); ``ifindex`` 0: it comes from a process here."""
        network.interface(ifindex or UPLINK_IFINDEX, UPLINK_IFINDEX)
        return testrun.run(self.equipment.program(program), packet, ingress_ifindex=ifindex)

    def remembered(self, key: bytes) -> bytes | None:
        """Return what ``flows`` says a packet with this tuple becomes, or None."""
        raw = self._flows.get(key)
        return None if raw is None else raw[: len(key)]

    def rules(self, key: bytes) -> list[tuple[abi.Direction, int]]:
        """Return which rules let a flow pass, by direction; none where no policy had a say."""
        raw = self._flows.get(key)
        if raw is None:
            return []
        flow = abi.Flow.unpack(raw)
        found = ((abi.Direction.EGRESS, flow.egress_rule), (abi.Direction.INGRESS, flow.ingress_rule))
        return [(direction, rule) for direction, rule in found if rule]

    def rule(self, identity: int) -> str:
        """Return a rule's name."""
        name = self.equipment.tables["names"].get(identity.to_bytes(8, "little"))
        return abi.unpack_name(name) if name else f"#{identity:016x}"

    def audited(self, identity: int) -> bool:
        """Say whether a rule would have dropped what it let pass; a rule never does both."""
        hits = self.equipment.tables["rule_hits"].get(identity.to_bytes(8, "little")) or b""
        size = abi.Hits.size()
        return any(abi.Hits.unpack(hits[at : at + size]).audited for at in range(0, len(hits), size))

    def forget(self, key: bytes) -> None:
        """Remove one direction of a flow."""
        self._flows.delete(key)

    def forget_clients(self) -> None:
        """Let no client stay with its backend any longer."""
        table = self.equipment.tables["affinity"]
        table.delete_batch([key for key, _ in table.items()])

    def frontend(self, key: bytes, *, arrives: bool) -> Frontend | None:
        """Return the service that a packet with this tuple is for, or None; it ``arrives`` from the network, or not."""
        outside = arrives and not self._is_pod(key[:16])
        entry = key[16:32] + key[34:37] + b"\0"
        if (entry, outside) not in self._frontends:
            self._frontends[entry, outside] = self._read_frontend(entry, outside=outside)
        found = self._frontends[entry, outside]
        if found and found.direct and self._marks(key[:16]) & abi.Mark.NODE:  # the client is a node
            return found._replace(direct=False)
        return found

    def stands_in(self, backend: bytes) -> bool:
        """Tell whether clients outside are hidden from a backend's address: it is neither a pod here nor this node."""
        address = abi.unpack_address(backend)
        return self.equipment.tables["pods"].get(backend) is None and address not in self.host.addresses

    def _is_pod(self, address: bytes) -> bool:
        kind = self.equipment.tables["blocks"].get(abi.Block(128, address).pack())
        return kind is not None and int.from_bytes(kind, "little") == abi.BlockKind.PODS

    def _read_frontend(self, entry: bytes, *, outside: bool) -> Frontend | None:
        tables = self.equipment.tables
        raw = tables["services"].get(entry)
        known = True  # to the other nodes, as an address that leads to services
        if raw is None and self._marks(entry[:16]) & abi.Mark.NODEPORTS:
            known = bool(self._marks(entry[:16]) & abi.Mark.NODE)
            anywhere = abi.V4_PREFIX + bytes(4) if entry.startswith(abi.V4_PREFIX) else bytes(16)
            raw = tables["services"].get(anywhere + entry[16:])
        if raw is None:
            return None
        service = abi.Service.unpack(raw)
        identity = service.outside if outside else service.inside
        name = tables["names"].get(identity.to_bytes(8, "little"))
        label = abi.unpack_name(name) if name else ""
        backends = tuple(sorted(self._backends(identity)))
        direct = outside and known and bool(service.marks & abi.Mark.DIRECT)
        return Frontend(label.removesuffix("#local"), label.endswith("#local"), service.affinity_s, backends, direct)

    def _marks(self, address: bytes) -> int:
        raw = self.equipment.tables["services"].get(abi.Frontend(address, 0, 0).pack())
        return abi.Service.unpack(raw).marks if raw else 0

    def _backends(self, identity: int) -> set[str]:
        tables = self.equipment.tables
        raw = tables["sets"].get(identity.to_bytes(8, "little"))
        if raw is None:
            return set()
        found = abi.Set.unpack(raw)
        slots = (abi.Slot(identity, found.generation, index).pack() for index in range(found.count))
        values = {value for slot in slots if (value := tables["slots"].get(slot)) is not None}
        return {packets.show_end(value[:16], value[16:18]) for value in values}


class World:
    """All nodes. Not thread-safe; close it."""

    def __init__(self, compiled: Object, flags: Flags = NO_FLAGS) -> None:
        self._compiled = compiled
        self._flags = flags
        self._inside = (*flags.service_cidrs, *flags.cluster_cidrs)
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
            for program in equipment.loaded.values():
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
            node.set_host(self._host_of(name))
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
            node.set_host(self._host_of(name))
            node.apply([*map(Upsert, self.facts.values()), Synced()])
            self._nodes[name] = node
        return self._nodes[name]

    def forget_clients(self) -> None:
        """Let every client choose anew."""
        for node in self._nodes.values():
            node.forget_clients()

    @property
    def problems(self) -> list[Problem]:
        """What the nodes' own compilation refused, each problem once."""
        return sorted({problem for node in self._nodes.values() for problem in node.reconciler.problems}, key=str)

    def _equip(self) -> Equipment:
        tables: dict[str, KernelTable] = {}
        try:
            for name, spec in abi.TABLES.items():
                tables[name] = kernel.create(spec._replace(max_entries=SIZES.get(name, spec.max_entries)))
            return Equipment(tables, {code.name: code for code in self._compiled.programs}, {})
        except Exception:
            for table in tables.values():
                table.close()
            raise

    def _retire(self, names: Iterable[str]) -> None:
        self._spare += [self._nodes.pop(name).equipment for name in names]

    def _host_of(self, name: str) -> Host:
        """Return what a node is to services, as an agent with these flags finds it, without other addresses."""
        flags = self._flags
        addresses = self.directory.addresses_of(name)
        versions = dict.fromkeys(address.version for address in addresses)
        primary = tuple(next(each for each in addresses if each.version == version) for version in versions)
        return Host(
            addresses,
            flags.nodeport_addresses(addresses, primary),
            primary,
            pod_cidrs=flags.cluster_cidrs,
            service_cidrs=flags.service_cidrs,
            external_ip_cidrs=flags.external_ip_cidrs,
        )

    def _wires_of(self, name: str) -> dict[str, abi.Wire]:
        pods = [pod for pod in self.directory.pods.values() if pod.node == name and not pod.host_network]
        return {label(pod): self._wire(pod.ref) for pod in pods}

    def _wire(self, ref: Ref) -> abi.Wire:
        if ref not in self._wires:
            self._wires[ref] = abi.Wire(self._next_ifindex, b"\x02\xeb" + self._next_ifindex.to_bytes(4, "big"))
            self._next_ifindex += 1
        return self._wires[ref]
