"""A packet's nanoseconds under 1, 10, 100 and 1,000 policies: the tables that so many would leave, filled in directly.

Client and backend are each selected by all of them: every policy allows one class of ten peers two ranges of ports, and
isolates. The two are each other's peers by the last one. Each round fills the same tables under the same programs for
every number, for where memory happens to lie weighs more than what is measured; and the least of a number's rounds
counts: what else ran on this machine only adds.
"""

from __future__ import annotations

from collections.abc import Mapping

from ebpfnet import abi
from ebpfnet.maps import kernel
from ebpfnet.maps.kernel import KernelTable
from tests.bench import packet
from tests.bench.figures import Figure, at_most

POLICIES = (0, 1, 10, 100, 1_000)
PEERS, ROUNDS = 10, 15
FLOWS = 65_536
CLIENT_GROUP, BACKEND_GROUP = 71, 72
NEW, ESTABLISHED = 10, 2
"""Per cent that the cost of a packet may grow from one policy to the most."""


def _rules(group: int, direction: abi.Direction, policies: int) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    rules = {abi.RuleKey(group, 0, direction).pack(): abi.Rule(group).pack()}
    ports = {}
    for number in range(1, policies + 1):
        content = group * 10_000 + number
        lengths = 1 << 16 | 1 << 12
        deny = abi.Rule(group, content, lengths)
        rules[abi.RuleKey(group, number, direction).pack()] = deny.pack()
        allow = abi.Rule(content, 0, 0, abi.Verdict.ALLOW).pack()
        ports[abi.PortRange(content, packet.TARGET_PORT, 16, abi.Protocol.TCP).pack()] = allow
        ports[abi.PortRange(content, 0x4000, 12, abi.Protocol.TCP).pack()] = allow
    return rules, ports


def _fill(tables: Mapping[str, KernelTable], policies: int) -> None:
    """Write what so many policies leave, and nothing else; 0: no policy selects anybody."""
    for name in ("rules", "rule_ports", "peers"):
        tables[name].delete_batch([joined for joined, _ in tables[name].chunks()])
    for group, direction in ((CLIENT_GROUP, abi.Direction.EGRESS), (BACKEND_GROUP, abi.Direction.INGRESS)):
        rules, ports = _rules(group, direction, policies)
        tables["rules"].put_batch(list(rules), list(rules.values()))
        tables["rule_ports"].put_batch(list(ports), list(ports.values()))
        other = abi.RuleKey(group, 0, abi.Direction(1 - direction))
        tables["rules"].put(other.pack(), abi.Rule(0, 0, 0, abi.Verdict.ALLOW).pack())
    for family in packet.FAMILIES:
        peers = [
            packet.packed("10.210.0.0" if family.name == "v4" else "fd00:210::", i) for i in range(policies * PEERS)
        ]
        numbers = [(1 + index // PEERS).to_bytes(4, "little") for index in range(len(peers))]
        tables["peers"].put_batch(peers, numbers)
        backends = [packet.packed(family.first_backend, index + 1) for index in range(packet.BACKENDS)]
        for address in (packet.packed(family.client), packet.packed(family.remote), *backends):
            tables["peers"].put(address, policies.to_bytes(4, "little"))
        client = abi.Pod(packet.CLIENT_WIRE, 1, CLIENT_GROUP if policies else 0)
        tables["pods"].put(packet.packed(family.client), client.pack())
        for address in backends:
            tables["pods"].put(address, abi.Pod(packet.BACKEND_WIRE, 2, BACKEND_GROUP if policies else 0).pack())


def measure() -> list[Figure]:
    """Return each kind of packet's cost for each number of policies, the last against the first."""
    specs = {**abi.TABLES, "flows": abi.TABLES["flows"]._replace(max_entries=FLOWS)}
    bench = packet.opened({name: kernel.create(spec) for name, spec in specs.items()})
    cases = [case for case in bench.cases() if case.repeat != packet.MANY_FLOWS]
    least: dict[str, dict[int, int]] = {}
    for _ in range(ROUNDS):
        for policies in POLICIES:
            _fill(bench.tables, policies)
            for case, value in bench.round(cases).items():
                known = least.setdefault(case.name, {})
                known[policies] = min(value, known.get(policies, value))
    bench.close()
    figures = []
    for name, values in least.items():
        figures += [Figure(f"packet: {name}, {number:,} policies", value, "ns") for number, value in values.items()]
        growth = 100 * (values[POLICIES[-1]] / values[1] - 1)
        if name.startswith("empty"):
            continue
        limit = NEW if name.startswith("new") else ESTABLISHED
        figures.append(at_most(f"packet: {name}, 1 to 1,000 policies", growth, "%", limit))
    return figures


def run() -> list[Figure]:
    """Measure them on a node of their own."""
    with packet.on_a_node():
        return measure()
