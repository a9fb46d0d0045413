"""Nanoseconds a packet spends in the datapath's programs, by ``BPF_PROG_TEST_RUN``.

``repeat`` puts the rewritten packet in again, so a NAT path would be timed on a packet that no longer matches. Single
runs are no way out: a timer read and a cold cache around one run weigh more than the run. So ``packet_bench.c`` wraps
the very same functions: the packet carries a copy of its first 80 bytes, and after each run ten stores put them back. A
twin that does nothing but put them back is measured next to it, and what is reported is

    wrapped program − twin + empty program

which is what ``BPF_PROG_TEST_RUN`` would show for the program alone (the empty program is a figure of its own).

A new flow takes a packet of another source port each time: the copy's port counts up, and the table is emptied between
rounds. 2,000 connections a round stay in the processor's caches, as the established path does; 60,000 do not, and what
is then added is memory, not instructions. "full" is a small table whose every insertion evicts (LRU). Beside the
services under test stand 10,000 others with 25 endpoints each.

All runs are inside a namespace with one pod's wire and an uplink, so that a packet to another node finds its route. A
test run is on the loopback device, which has the gateway's MAC here: a frame for another MAC is another host's.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from ebpfnet import abi
from ebpfnet.datapath import build, load, testrun
from ebpfnet.maps import kernel
from ebpfnet.maps.kernel import KernelTable
from tests.bench.figures import Figure, at_most
from tests.bench.namespace import Namespace

ROUNDS = 11
REPEAT = 200_000
FEW_FLOWS, MANY_FLOWS = 2_000, 60_000
COPIED = 80
SERVICES, SLOTS, BACKENDS = 10_000, 25, 100
FULL = 16_384
CLIENT_WIRE = abi.Wire(11, bytes.fromhex("02000000000b"))
BACKEND_WIRE = abi.Wire(12, bytes.fromhex("02000000000c"))
NETWORK_WIRE = abi.Wire(13, bytes.fromhex("02000000000d"))  # where packets of the other node come in
GATEWAY = "02:00:00:00:00:01"
NODE = f"""
link add client index {CLIENT_WIRE.ifindex} type veth peer name pod
link add uplink index {NETWORK_WIRE.ifindex} type veth peer name network
link set client up
link set pod up
link set uplink up
link set lo address {GATEWAY}
link set network up
addr add 192.168.9.1/24 dev uplink
addr add fd00:9::1/64 dev uplink nodad
neigh add 192.168.9.2 lladdr {NETWORK_WIRE.mac.hex(":")} dev uplink nud permanent
neigh add fd00:9::2 lladdr {NETWORK_WIRE.mac.hex(":")} dev uplink nud permanent
route add 10.201.0.0/16 via 192.168.9.2
route add fd00:201::/64 via fd00:9::2
"""
PORT, TARGET_PORT = 80, 8080
PROGRAMS = ("empty", "restore_only", "restore_next_only", "from_pod_again", "from_pod_next", "from_network_again")
ESTABLISHED_NS, NEW_NS = 200, 800


class Family(NamedTuple):
    """Addresses of one family."""

    name: str
    client: str
    vip: str
    first_backend: str
    remote: str


FAMILIES = (
    Family("v4", "10.200.0.1", "10.96.100.1", "10.200.1.0", "10.201.0.1"),
    Family("v6", "fd00:200::1", "fd00:96::100:1", "fd00:200:1::", "fd00:201::1"),
)


class Case(NamedTuple):
    """One packet, to be sent through ``program`` again and again; ``twin`` is what to subtract."""

    name: str
    program: str
    twin: str
    packet: bytes
    wire: abi.Wire
    repeat: int
    limit: float | None


def packed(text: str, offset: int = 0) -> bytes:
    """Return an address, counted on from one that is written."""
    return abi.pack_address(ip_address(text) + offset)


def _text(raw: bytes) -> str:
    return str(abi.unpack_address(raw))


def _segment(wire: abi.Wire, key: abi.Tuple, flags: str) -> bytes:
    """Return a TCP segment with the copy of its own head in it."""
    source, destination = _text(key.source), _text(key.destination)
    ip = IP(src=source, dst=destination) if "." in source else IPv6(src=source, dst=destination)
    tcp = TCP(sport=key.source_port, dport=key.destination_port, flags=flags)
    headers = Ether(src=wire.mac.hex(":"), dst=GATEWAY) / ip / tcp
    head = bytes(headers / bytes(2 * COPIED - len(headers)))[:COPIED]
    return head + head


def _fill(tables: Mapping[str, KernelTable]) -> None:
    """Put the services under test, their backends' pods and many other services into the tables."""
    tables["pods"].put(packed(FAMILIES[0].client), abi.Pod(CLIENT_WIRE, 1).pack())
    tables["pods"].put(packed(FAMILIES[1].client), abi.Pod(CLIENT_WIRE, 1).pack())
    for number, family in enumerate(FAMILIES):
        frontend = abi.Frontend(packed(family.vip), PORT, abi.Protocol.TCP)
        tables["services"].put(frontend.pack(), abi.Service(number + 1, number + 1).pack())
        tables["sets"].put((number + 1).to_bytes(8, "little"), abi.Set(1, BACKENDS).pack())
        for index in range(BACKENDS):
            address = packed(family.first_backend, index + 1)
            tables["slots"].put(abi.Slot(number + 1, 1, index).pack(), abi.Backend(address, TARGET_PORT).pack())
            tables["pods"].put(address, abi.Pod(BACKEND_WIRE, 2).pack())
    frontends, values, sets, slots = [], [], [], []
    for number in range(SERVICES):
        frontends.append(abi.Frontend(packed("10.97.0.1", number), PORT, abi.Protocol.TCP).pack())
        values.append(abi.Service(number + 100, number + 100).pack())
        sets.append((number + 100).to_bytes(8, "little"))
        slots += [abi.Slot(number + 100, 1, index).pack() for index in range(SLOTS)]
    backends = [abi.Backend(packed("10.128.0.1", index), TARGET_PORT).pack() for index in range(len(slots))]
    tables["services"].put_batch(frontends, values)
    tables["sets"].put_batch(sets, [abi.Set(1, SLOTS).pack()] * SERVICES)
    tables["slots"].put_batch(slots, backends)


def _connect(
    programs: Mapping[str, load.Program], flows: KernelTable, key: abi.Tuple, back_wire: abi.Wire = BACKEND_WIRE
) -> abi.Tuple:
    """Open a connection through the real programs and return the answers' tuple."""
    back_program = "from_network" if back_wire is NETWORK_WIRE else "from_pod"
    for flags, program, wire in (
        ("S", "from_pod", CLIENT_WIRE),
        ("SA", back_program, back_wire),
        ("A", "from_pod", CLIENT_WIRE),
    ):
        raw = flows.get(key.pack())
        reply = abi.Flow.unpack(raw).to.reverse() if raw else key.reverse()
        packet = _segment(wire, reply if flags == "SA" else key, flags)
        outcome = testrun.run(programs[program].fd, packet, ingress_ifindex=wire.ifindex).cb[0]
        assert outcome in {abi.Outcome.POD, abi.Outcome.NETWORK}, f"{flags} of {key}: {abi.Outcome(outcome).name}"
    raw = flows.get(key.pack())
    assert raw is not None
    flow = abi.Flow.unpack(raw)
    assert flow.state == abi.FlowState.ESTABLISHED, flow
    return flow.to.reverse()


def _cases(programs: Mapping[str, load.Program], flows: KernelTable) -> Iterator[Case]:
    for family in FAMILIES:
        client, pod, remote = packed(family.client), packed(family.first_backend, 1), packed(family.remote)
        direct = abi.Tuple(client, pod, 40_000, TARGET_PORT, abi.Protocol.TCP)
        service = abi.Tuple(client, packed(family.vip), 40_001, PORT, abi.Protocol.TCP)
        away = abi.Tuple(client, remote, 40_002, TARGET_PORT, abi.Protocol.TCP)
        _connect(programs, flows, direct)
        reply = _connect(programs, flows, service)
        back = _connect(programs, flows, away, NETWORK_WIRE)
        for name, program, key, wire in (
            ("no NAT", "from_pod_again", direct, CLIENT_WIRE),
            ("NAT forward", "from_pod_again", service, CLIENT_WIRE),
            ("NAT reply", "from_pod_again", reply, BACKEND_WIRE),
            ("to another node", "from_pod_again", away, CLIENT_WIRE),
            ("from another node", "from_network_again", back, NETWORK_WIRE),
        ):
            packet = _segment(wire, key, "PA")
            text = f"established {family.name} {name}"
            yield Case(text, program, "restore_only", packet, wire, REPEAT, ESTABLISHED_NS)
        for name, key in (("no NAT", direct), ("through a service", service)):
            packet = _segment(CLIENT_WIRE, key, "S")
            for count in (FEW_FLOWS, MANY_FLOWS):
                text = f"new {family.name} {name}, {count:,} flows"
                yield Case(text, "from_pod_next", "restore_next_only", packet, CLIENT_WIRE, count, NEW_NS)


def _clear(flows: KernelTable) -> None:
    flows.delete_batch([joined for joined, _ in flows.chunks()])


def _time(programs: Mapping[str, load.Program], name: str, case: Case) -> int:
    return testrun.run(programs[name].fd, case.packet, ingress_ifindex=case.wire.ifindex, repeat=case.repeat).ns


def _load(tables: Mapping[str, KernelTable]) -> dict[str, load.Program]:
    cache = Path("build/bench")
    wrapped = build.compiled(cache, Path(__file__).with_name("packet_bench.c"), PROGRAMS)
    return {**load.load(build.compiled(cache), tables), **load.load(wrapped, tables, PROGRAMS)}


class Bench(NamedTuple):
    """Programs over tables of their own, with the services under test in them."""

    tables: dict[str, KernelTable]
    programs: dict[str, load.Program]

    def cases(self) -> list[Case]:
        """Open the connections whose packets are timed, and return those packets."""
        return list(_cases(self.programs, self.tables["flows"]))

    def round(self, cases: Iterable[Case]) -> dict[Case, int]:
        """Time the empty program, and then each case beside its twin."""
        empty = Case("empty program", "empty", "", bytes(2 * COPIED), CLIENT_WIRE, REPEAT, None)
        reference = _time(self.programs, empty.program, empty)
        found = {empty: reference}
        for case in cases:
            if case.twin == "restore_next_only":
                _clear(self.tables["flows"])
            twin = _time(self.programs, case.twin, case)
            found[case] = _time(self.programs, case.program, case) - twin + reference
        return found

    def close(self) -> None:
        """Close programs and tables."""
        for table in self.tables.values():
            table.close()
        for program in self.programs.values():
            program.close()


def opened(tables: dict[str, KernelTable]) -> Bench:
    """Load the programs over tables, and fill these with services."""
    _fill(tables)
    return Bench(tables, _load(tables))


def _measure(flows_size: int, wanted: str, repeat: int) -> dict[Case, float]:
    """Return the median over all rounds of the empty program and of each case of so many repeats, over new tables."""
    specs = {**abi.TABLES, "flows": abi.TABLES["flows"]._replace(max_entries=flows_size)}
    bench = opened({name: kernel.create(spec) for name, spec in specs.items()})
    cases = [case for case in bench.cases() if (case.name.split()[0], case.repeat) == (wanted, repeat)]
    net: dict[Case, list[int]] = {}
    for _ in range(ROUNDS):
        for case, value in bench.round(cases).items():
            net.setdefault(case, []).append(value)
    bench.close()
    return {case: statistics.median(values) for case, values in net.items()}


@contextmanager
def on_a_node() -> Iterator[None]:
    """Stay on one processor, in a namespace with the wires and routes that packets take."""
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(affinity)})
    node = Namespace()
    try:
        node.set("ipv4.ip_forward", 1)
        node.set("ipv6.conf.all.forwarding", 1)
        node.call(["ip", "-batch", "-"], NODE)
        with node.entered():
            yield
    finally:
        node.close()
        os.sched_setaffinity(0, affinity)


def run() -> list[Figure]:
    """Measure every kind of packet."""
    with on_a_node():
        roomy = abi.TABLES["flows"].max_entries
        found = _measure(roomy, "established", REPEAT)
        for count in (FEW_FLOWS, MANY_FLOWS):
            found |= _measure(roomy, "new", count)
        full = _measure(FULL, "new", MANY_FLOWS)
    figures = []
    for case, value in found.items():
        name = f"packet: {case.name}"
        figures.append(at_most(name, value, "ns", case.limit) if case.limit else Figure(name, value, "ns"))
    figures += [Figure(f"packet: {c.name}, full", v, "ns") for c, v in full.items() if c.limit]
    return figures
