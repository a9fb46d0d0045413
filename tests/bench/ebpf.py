"""Our side of the benchmarks with real packets: the programs on a node, over real tables with many services."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from ebpfnet import abi
from ebpfnet.datapath import attach, build, cgroup, load
from ebpfnet.maps import kernel
from tests.bench.namespace import Namespace
from tests.bench.services import ENDPOINT_PORT, SERVICE_PORT, Service
from tests.bench.wires import Pair

Tables = dict[str, kernel.KernelTable]
PROTOCOLS = {"tcp": abi.Protocol.TCP, "udp": abi.Protocol.UDP}
ANY = abi.pack_address(IPv4Address("0.0.0.0"))


@contextmanager
def _loaded() -> Iterator[tuple[Tables, dict[str, load.Program]]]:
    """Yield new tables and the programs over them.

    Nothing is pinned: filters hold the programs, programs hold the tables, and all go with the node's namespace.
    """
    tables = {name: kernel.create(spec) for name, spec in abi.TABLES.items()}
    programs = load.load(build.compiled(Path("build/bench")), tables)
    yield tables, programs
    for program in programs.values():
        program.close()
    for table in tables.values():
        table.close()


def _fill(tables: Tables, services: Iterable[Service]) -> None:
    frontends, values, sets, heads, slots, backends = [], [], [], [], [], []
    for service in services:
        identity = abi.identify(f"{service.namespace}/{service.name}:http")
        protocol, value = PROTOCOLS[service.protocol], abi.Service(identity, identity).pack()
        frontends.append(abi.Frontend(abi.pack_address(service.vip), SERVICE_PORT, protocol).pack())
        values.append(value)
        if service.node_port:
            frontends.append(abi.Frontend(ANY, service.node_port, protocol).pack())
            values.append(value)
        sets.append(identity.to_bytes(8, "little"))
        heads.append(abi.Set(1, len(service.endpoints)).pack())
        slots += [abi.Slot(identity, 1, index).pack() for index in range(len(service.endpoints))]
        backends += [abi.Backend(abi.pack_address(address), ENDPOINT_PORT).pack() for address in service.endpoints]
    tables["slots"].put_batch(slots, backends)
    tables["sets"].put_batch(sets, heads)
    tables["services"].put_batch(frontends, values)


def attach_programs(pair: Pair, services: Sequence[Service], group: Path | None = None) -> list[int]:
    """Put pods and services into new tables, and the programs over them onto the pods' wires.

    With ``group`` those of the shortcut are on that cgroup, as long as the links are open that are returned.
    """
    with _loaded() as (tables, programs):
        for wire in (pair.client, pair.server):
            pod = abi.Pod(abi.Wire(wire.ifindex, bytes.fromhex(wire.mac.replace(":", ""))), abi.identify(wire.host))
            for address in wire.addresses:
                tables["pods"].put(abi.pack_address(address), pod.pack())
        _fill(tables, services)
        with pair.node.entered():
            for wire in (pair.client, pair.server):
                attach.attach(wire.ifindex, [programs["from_pod"], programs["to_pod"]])
        return list(_links(group, programs)) if group else []


def _links(group: Path, programs: dict[str, load.Program]) -> Iterator[int]:
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    for name in abi.SOCKET_PROGRAMS:
        yield cgroup.create_link(programs[name], directory)
    os.close(directory)


def attach_to_uplinks(
    node: Namespace, uplinks: Iterable[int], address: IPv4Address, services: Iterable[Service]
) -> None:
    """Serve NodePorts at a node's address: services into new tables, the programs over them onto its uplinks."""
    with _loaded() as (tables, programs):
        _fill(tables, services)
        marks = abi.Mark.OWN | abi.Mark.NODEPORTS
        mark = abi.Frontend(abi.pack_address(address), 0, 0)
        tables["services"].put(mark.pack(), abi.Service(0, 0, marks=marks).pack())
        source = abi.Node(abi.pack_address(address), bytes(16), 1024, 29999)
        tables["node"].put(bytes(4), source.pack())
        with node.entered():
            for ifindex in uplinks:
                attach.attach(ifindex, [programs["from_network"], programs["to_network"]])
