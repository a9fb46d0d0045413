"""Our side of the `connect` benchmark: the real programs on a node's two veths, over real tables with many services."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ebpfnet import abi
from ebpfnet.datapath import attach, build, load
from ebpfnet.maps import kernel
from tests.bench.services import ENDPOINT_PORT, SERVICE_PORT, Service
from tests.bench.wires import Pair


def attach_programs(pair: Pair, services: Sequence[Service]) -> None:
    """Put pods and services into new tables, and the programs over them onto the pods' wires.

    Nothing is pinned: filters hold the programs, programs hold the tables, and all go with the node's namespace.
    """
    tables = {name: kernel.create(spec) for name, spec in abi.TABLES.items()}
    for wire in (pair.client, pair.server):
        pod = abi.Pod(abi.Wire(wire.ifindex, bytes.fromhex(wire.mac.replace(":", ""))), abi.identify(wire.host))
        for address in wire.addresses:
            tables["pods"].put(abi.pack_address(address), pod.pack())
    frontends, values, slots, backends = [], [], [], []
    for service in services:
        identity = abi.identify(f"{service.namespace}/{service.name}:http")
        frontends.append(abi.Frontend(abi.pack_address(service.vip), SERVICE_PORT, abi.Protocol.TCP).pack())
        values.append(abi.Service(identity, 1, len(service.endpoints)).pack())
        slots += [abi.Slot(identity, 1, index).pack() for index in range(len(service.endpoints))]
        backends += [abi.Backend(abi.pack_address(address), ENDPOINT_PORT).pack() for address in service.endpoints]
    tables["services"].put_batch(frontends, values)
    tables["slots"].put_batch(slots, backends)
    programs = load.load(build.compiled(Path("build/bench")), tables)
    with pair.node.entered():
        for wire in (pair.client, pair.server):
            attach.attach(wire.ifindex, [programs["from_pod"], programs["to_pod"]])
    for program in programs.values():
        program.close()
    for table in tables.values():
        table.close()
