"""Policies in the tables of a packet test, filled in by hand."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ebpfnet import abi
from ebpfnet.abi import Direction, Hook, RuleFlag, Verdict
from tests import packets
from tests.prog.loaded import Datapath

TABLES = ("peers", "peer_blocks", "rules", "rule_ports", "rule_hits")
IDS = {verdict: 100 + verdict for verdict in Verdict}
"""Of the rules that ``put_rule`` writes when no id is given."""


def word(number: int, size: int = 4) -> bytes:
    return number.to_bytes(size, "little")


class Policies:
    """Writes the tables of policies, and reads what the programs counted."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self.tables = datapath.tables
        for name in TABLES:
            self.tables[name].delete_batch([key for key, _ in self.tables[name].items()])
        self._ports = 0

    def select(self, address: str, group: int) -> None:
        """Put a pod that is there into a group, whose two entries for everybody allow."""
        pod = abi.Pod.unpack(self.tables["pods"].get(packets.raw(address)) or b"")
        self.tables["pods"].put(packets.raw(address), abi.Pod(pod.wire, pod.id, group).pack())
        for direction in Direction:
            self.rule(group, direction, Verdict.ALLOW, identity=0)

    def rule(
        self,
        group: int,
        direction: Direction,
        verdict: Verdict,
        peers: int = 0,
        ports: Iterable[tuple[int, int, int, Verdict]] = (),
        identity: int | None = None,
        flags: int = 0,
    ) -> None:
        """Write a rule; ``ports`` are port, bits of the prefix, protocol, verdict, and their ids 200 and so on."""
        lengths, number = 0, 0
        for index, (port, length, protocol, own) in enumerate(ports):
            if not number:
                self._ports += 1
                number = self._ports
            lengths |= 1 << length
            key = abi.PortRange(number, port, length, protocol)
            self.tables["rule_ports"].put(key.pack(), abi.Rule(200 + index, 0, 0, own, flags).pack())
        key_of_rule = abi.RuleKey(group, peers, direction)
        mine = IDS[verdict] if identity is None else identity
        self.tables["rules"].put(key_of_rule.pack(), abi.Rule(mine, number, lengths, verdict, flags).pack())

    def isolate(self, address: str, direction: Direction, group: int = 7, *, graceful: bool = False) -> None:
        """Let nobody talk to a pod, or it to nobody."""
        self.select(address, group)
        self.rule(group, direction, Verdict.DENY, flags=RuleFlag.GRACEFUL if graceful else 0)

    def peer(self, address: str, number: int) -> None:
        self.tables["peers"].put(packets.raw(address), word(number))

    def block(self, text: str, number: int) -> None:
        network = ipaddress.ip_network(text)
        length = network.prefixlen + (96 if network.version == 4 else 0)
        key = abi.Block(length, abi.pack_address(network.network_address))
        self.tables["peer_blocks"].put(key.pack(), word(number))

    def bump(self, ifindex: int) -> None:
        """Say that verdicts of the pod at a wire may have changed."""
        key = word(ifindex % abi.GENERATIONS)
        now = int.from_bytes(self.tables["generations"].get(key) or bytes(4), "little")
        self.tables["generations"].put(key, word(now + 1))

    def hits(self, rule: int) -> abi.Hits:
        raw = self.tables["rule_hits"].get(word(rule, 8)) or b""
        size = abi.Hits.size()
        parts = [abi.Hits.unpack(raw[at : at + size]) for at in range(0, len(raw), size)]
        return abi.Hits(
            sum(each.allowed for each in parts), sum(each.denied for each in parts), sum(each.audited for each in parts)
        )

    def last_sample(self) -> abi.DropSample:
        samples = (abi.DropSample.unpack(value) for _, value in self.tables["drop_samples"].items())
        return max(samples, key=lambda sample: sample.sequence)

    def drops(self, hook: Hook, reason: abi.DropReason) -> int:
        return self.datapath.drops(hook, reason)
