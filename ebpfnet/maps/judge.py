"""What the tables say of a connection between two addresses: the datapath's own steps (bpf/lib/policy.h), over tables.

Asked as the datapath asks: the source is the client before any translation, destination and port are those after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Direction, Protocol, Verdict
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table

EVERYBODY = 0
"""The class of who has no entry of his own."""
_WITH_PORTS = {Protocol.TCP, Protocol.UDP, Protocol.SCTP}
_PORT_BITS = 16


class Judgement(NamedTuple):
    """What decided, and how. ``group`` 0: no policy selects the pod; ``rules_missing``: nothing is said, so: no.

    ``peers`` is the class of the other side.
    """

    verdict: Verdict
    rule: int = 0
    graceful: bool = False
    group: int = 0
    peers: int = EVERYBODY
    rules_missing: bool = False


class Trie(MemoryTable):
    """A copy of ``peer_blocks`` that is asked often: it finds the smallest block around an address at once."""

    def __init__(self, spec: abi.TableSpec, items: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(spec)
        self.entries = dict(items)
        by_shift: dict[int, dict[int, int]] = {}
        for key, value in self.entries.items():
            length, start = abi.Block.layout.unpack(key)
            shift = len(start) * 8 - length
            by_shift.setdefault(shift, {})[int.from_bytes(start, "big") >> shift] = int.from_bytes(value, "little")
        self._by_shift = sorted(by_shift.items())

    def nearest(self, address: bytes) -> int:
        """Return the class of the smallest block around a packed address; everybody's if there is none."""
        whole = int.from_bytes(address, "big")
        found = (blocks.get(whole >> shift) for shift, blocks in self._by_shift)
        return next((number for number in found if number is not None), EVERYBODY)


def class_of(tables: Mapping[str, Table], address: bytes) -> int:
    """Return the class of a packed address: its own entry's, else that of the smallest block that it is in."""
    value = tables["peers"].get(address)
    return int.from_bytes(value, "little") if value is not None else _nearest(tables["peer_blocks"], address)


def _nearest(blocks: Table, address: bytes) -> int:
    """Look at every block: the kernel's own lookup in a trie is no help with one in memory."""
    if isinstance(blocks, Trie):
        return blocks.nearest(address)
    whole, bits = int.from_bytes(address, "big"), len(address) * 8
    longest, found = -1, EVERYBODY
    for key, value in blocks.items():
        length, start = abi.Block.layout.unpack(key)
        same = not length or whole >> (bits - length) == int.from_bytes(start, "big") >> (bits - length)
        if same and length > longest:
            longest, found = length, int.from_bytes(value, "little")
    return found


def judge(
    tables: Mapping[str, Table],
    source: bytes,
    destination: bytes,
    protocol: int,
    port: int,
    direction: Direction,
) -> Judgement:
    """Return what is said of a connection where it leaves its source, or where it comes to its destination."""
    mine, other = (source, destination) if direction == Direction.EGRESS else (destination, source)
    raw = tables["pods"].get(mine)
    pod = abi.Pod.unpack(raw) if raw is not None else None
    group = pod.group if pod and not pod.wire.segment else 0  # another plugin's wire: its policies
    if not group:
        return Judgement(Verdict.ALLOW)
    peers = class_of(tables, other)
    value = tables["rules"].get(abi.RuleKey(group, peers, direction).pack())
    if value is None:
        value = tables["rules"].get(abi.RuleKey(group, EVERYBODY, direction).pack())
    if value is None:
        return Judgement(Verdict.DENY, group=group, peers=peers, rules_missing=True)
    rule = abi.Rule.unpack(value)
    if rule.ports and protocol in _WITH_PORTS:
        rule = _by_port(tables["rule_ports"], rule, protocol, port) or rule
    graceful = bool(rule.flags & abi.RuleFlag.GRACEFUL)
    return Judgement(rule.verdict, rule.id, graceful, group, peers)


def _by_port(table: Table, rule: abi.Rule, protocol: int, port: int) -> abi.Rule | None:
    for length in range(_PORT_BITS, -1, -1):
        if rule.lengths >> length & 1:
            masked = port >> (_PORT_BITS - length) << (_PORT_BITS - length)
            value = table.get(abi.PortRange(rule.ports, masked, length, protocol).pack())
            if value is not None:
                return abi.Rule.unpack(value)
    return None
