"""One packet through the programs, over a copy of a node's tables: does the datapath do what we say of it.

Nothing of the node is touched: the programs are loaded once more, over tables of their own, in a network namespace of
their own. That these are the node's programs is seen by their tags (kernel ``bpf_prog_calc_tag``: a hash of the
instructions without the numbers of maps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Direction, DropReason, Outcome, Verdict
from ebpfnet.datapath import build, load, testrun
from ebpfnet.maps import kernel
from ebpfnet.maps.kernel import KernelTable
from ebpfnet.maps.table import Table
from ebpfnet.simulate import network, packets
from ebpfnet.simulate.trace import ROUTER_MAC, UPLINK_MAC
from ebpfnet.simulate.world import SIZES, UPLINK_IFINDEX

COPIED = ("pods", "peers", "peer_blocks", "rules", "rule_ports", "blocks")
"""Without services: a packet goes where it says, for policies are asked about the backend."""
SOURCE_PORT = 40_000
_DENIES = (DropReason.POLICY_EGRESS, DropReason.POLICY_INGRESS)
_GROUP = slice(24, 32)  # of a value of ``pods``


class Question(NamedTuple):
    """A connection between packed addresses, and where it is judged."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    direction: Direction


class Seen(NamedTuple):
    """What a program did. ``verdict`` None: it dropped the packet, and not because of a policy."""

    program: str
    verdict: Verdict | None
    rule: int
    reason: DropReason
    same: bool | None
    """Whether the program is the one on the node; None: none is pinned there."""


class Stand:
    """Programs over a copy of a node's tables; for one question after the other."""

    def __init__(self, compiled: build.Object, tables: Mapping[str, KernelTable], pins: Path) -> None:
        self._codes = {code.name: code for code in compiled.programs}
        self._tables = tables
        self._pins = pins
        self._loaded: dict[str, load.Program] = {}

    def close(self) -> None:
        """Give the programs back."""
        for program in self._loaded.values():
            program.close()

    def ask(self, question: Question) -> Seen:
        """Send a connection's first packet; the other end's own policies are not asked. Raises ``LoadFailed``."""
        tables = self._tables
        other = question.source if question.direction == Direction.INGRESS else question.destination
        kept = tables["pods"].get(other)
        if kept is not None:
            tables["pods"].put(other, kept[: _GROUP.start] + bytes(8) + kept[_GROUP.stop :])
        try:
            return self._send(question)
        finally:
            if kept is not None:
                tables["pods"].put(other, kept)
            for name in ("flows", "rule_hits"):
                tables[name].delete_batch([key for key, _ in tables[name].items()])

    def _send(self, asked: Question) -> Seen:
        port = SOURCE_PORT if asked.protocol in {abi.Protocol.ICMP, abi.Protocol.ICMPV6} else asked.port
        key = packets.tuple_key(asked.source, asked.destination, SOURCE_PORT, port, asked.protocol)
        sender = self._tables["pods"].get(asked.source)
        wire = abi.Pod.unpack(sender).wire if sender is not None else None
        if wire is not None and wire.segment == 0:
            name, ifindex, packet = "from_pod", wire.ifindex, packets.build(key, wire.mac, ROUTER_MAC, answer=False)
        else:
            name, ifindex = "from_network", UPLINK_IFINDEX
            packet = packets.build(key, ROUTER_MAC, UPLINK_MAC, answer=False)
        if name not in self._loaded:
            self._loaded[name] = load.load_one(self._codes[name], self._tables)
        program = self._loaded[name]
        network.interface(ifindex, UPLINK_IFINDEX)
        result = testrun.run(program.fd, packet, ingress_ifindex=ifindex)
        outcome, reason = Outcome(result.cb[0]), DropReason(result.cb[1])
        same = load.is_pinned(program, self._pins / name)
        if outcome < Outcome.REJECT:
            return Seen(name, *self._passed(key, asked.direction), DropReason.NONE, same)
        if reason == DropReason.NO_RULES:
            return Seen(name, Verdict.DENY, 0, reason, same)
        if reason in _DENIES:
            return Seen(name, Verdict.DENY, result.cb[3] | result.cb[4] << 32, reason, same)
        return Seen(name, None, 0, reason, same)

    def _passed(self, key: bytes, direction: Direction) -> tuple[Verdict, int]:
        value = self._tables["flows"].get(key)
        flow = abi.Flow.unpack(value) if value is not None else None
        rule = 0 if flow is None else flow.egress_rule if direction == Direction.EGRESS else flow.ingress_rule
        hits = self._tables["rule_hits"].get(rule.to_bytes(8, "little")) if rule else None
        size = abi.Hits.size()
        each = (abi.Hits.unpack(hits[at : at + size]) for at in range(0, len(hits or b""), size)) if hits else ()
        return Verdict.AUDIT if any(cpu.audited for cpu in each) else Verdict.ALLOW, rule


@contextmanager
def stand(live: Mapping[str, Table], pins: Path, cache: Path | None = None) -> Iterator[Stand]:
    """Copy a node's tables and make its programs ready; raises ``CompileFailed``, ``NotRoot``, ``TableError``."""
    compiled = build.compiled(cache or build.DEFAULT_CACHE)
    tables: dict[str, KernelTable] = {}
    with network.private_network():
        try:
            for name, spec in abi.TABLES.items():
                size = live[name].spec.max_entries if name in COPIED else SIZES.get(name, min(spec.max_entries, 4096))
                fixed = spec.type in {abi.MapType.ARRAY, abi.MapType.PERCPU_ARRAY}
                tables[name] = kernel.create(spec if fixed else spec._replace(max_entries=size))
            for name in COPIED:
                found = list(live[name].items())
                if found:
                    tables[name].put_batch([key for key, _ in found], [value for _, value in found])
            ready = Stand(compiled, tables, pins)
            try:
                yield ready
            finally:
                ready.close()
        finally:
            for table in tables.values():
                table.close()
