"""What a packet test holds in its hand: the loaded programs, their tables, and what came of one packet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from scapy.all import Ether, Packet

from ebpfnet import abi
from ebpfnet.datapath import build, load, testrun
from ebpfnet.maps import kernel
from tests import packets
from tests.packets import ALICE_IFINDEX, ALICE_MAC, BOB_IFINDEX, BOB_MAC, POD_PORT, SERVICE_PORT, UPLINK_IFINDEX

IFINDEX = {
    "from_pod": ALICE_IFINDEX,
    "to_pod": UPLINK_IFINDEX,
    "from_network": UPLINK_IFINDEX,
    "to_network": 0,
    "to_network_beside": 0,
    "from_host": 0,
}


class Result(NamedTuple):
    """What came of one packet."""

    retval: int
    outcome: abi.Outcome
    reason: abi.DropReason
    ifindex: int
    raw: bytes

    @property
    def packet(self) -> Packet:
        return Ether(self.raw)


@contextmanager
def opened(compiled: build.Object, sizes: Mapping[str, int]) -> Iterator[Datapath]:
    """Load the programs over tables of their own, some of them of other sizes."""
    tables = {name: kernel.create(spec._replace(max_entries=sizes.get(name, spec.max_entries)))
              for name, spec in abi.TABLES.items()}  # fmt: skip
    programs: dict[str, load.Program] = {}
    try:
        programs = load.load(compiled, tables)
        yield Datapath(programs, tables)
    finally:
        for program in programs.values():
            program.close()
        for table in tables.values():
            table.close()


class Datapath:
    """Programs and tables; ``from_pod`` and the others send one packet."""

    def __init__(self, programs: dict[str, load.Program], tables: dict[str, kernel.KernelTable]) -> None:
        self.programs = programs
        self.tables = tables

    def run(
        self,
        program: str,
        packet: Packet | bytes,
        ifindex: int | None = None,
        gso: tuple[int, int] = (0, 0),
        device: int = 0,
    ) -> Result:
        """Send a packet that came in at ``ifindex`` and is now on ``device``."""
        where = IFINDEX[program] if ifindex is None else ifindex
        fd = self.programs[program].fd
        done = testrun.run(fd, bytes(packet), ingress_ifindex=where, ifindex=device, gso=gso)
        outcome, reason, target = done.cb[:3]
        return Result(done.retval, abi.Outcome(outcome), abi.DropReason(reason), target, done.packet)

    def from_pod(self, packet: Packet | bytes, ifindex: int = ALICE_IFINDEX) -> Result:
        return self.run("from_pod", packet, ifindex)

    def to_pod(self, packet: Packet | bytes, ifindex: int = UPLINK_IFINDEX) -> Result:
        return self.run("to_pod", packet, ifindex)

    def from_network(self, packet: Packet | bytes) -> Result:
        return self.run("from_network", packet)

    def to_network(self, packet: Packet | bytes) -> Result:
        return self.run("to_network", packet)

    def flow(self, key: abi.Tuple) -> abi.Flow | None:
        value = self.tables["flows"].get(key.pack())
        return None if value is None else abi.Flow.unpack(value)

    def flows(self) -> dict[abi.Tuple, abi.Flow]:
        return {abi.Tuple.unpack(key): abi.Flow.unpack(value) for key, value in self.tables["flows"].items()}

    def drops(self, hook: abi.Hook, reason: abi.DropReason) -> int:
        raw = self.tables["drops"].get((hook * abi.DROP_MAX + reason).to_bytes(4, "little")) or b""
        return sum(abi.Counter.unpack(raw[at : at + 16]).packets for at in range(0, len(raw), 16))

    def set_service(self, address: str, port: int, protocol: int, backends: list[tuple[str, int]], tag: int) -> None:
        frontend = abi.Frontend(packets.raw(address), port, protocol)
        self.tables["sets"].put(tag.to_bytes(8, "little"), abi.Set(1, len(backends)).pack())
        self.tables["services"].put(frontend.pack(), abi.Service(tag, tag).pack())
        for index, (backend, backend_port) in enumerate(backends):
            value = abi.Backend(packets.raw(backend), backend_port).pack()
            self.tables["slots"].put(abi.Slot(tag, 1, index).pack(), value)

    def clear(self) -> None:
        for name in (
            "flows",
            "fragments",
            "services",
            "sets",
            "slots",
            "members",
            "affinity",
            "ranges",
            "blocks",
            "pods",
            "namespaces",
            "sockets",
            "departed",
        ):
            table = self.tables[name]
            table.delete_batch([key for key, _ in table.items()])
        for ends in packets.FAMILIES:
            self._furnish(ends)

    def _furnish(self, ends: packets.Ends) -> None:
        mac = {name: bytes.fromhex(text.replace(":", "")) for name, text in (("a", ALICE_MAC), ("b", BOB_MAC))}
        self.tables["pods"].put(packets.raw(ends.alice), abi.Pod(abi.Wire(ALICE_IFINDEX, mac["a"]), 1).pack())
        self.tables["pods"].put(packets.raw(ends.bob), abi.Pod(abi.Wire(BOB_IFINDEX, mac["b"]), 2).pack())
        for protocol in (abi.Protocol.TCP, abi.Protocol.UDP):
            tag = 1000 * (1 + ends.ipv6) + protocol
            both = [(ends.bob, POD_PORT), (ends.carol, POD_PORT)]
            self.set_service(ends.service, SERVICE_PORT, protocol, both, tag)
            self.set_service(ends.lonely, SERVICE_PORT, protocol, [(ends.alice, POD_PORT)], tag + 200)
            self.set_service(ends.empty, SERVICE_PORT, protocol, [], tag + 400)
