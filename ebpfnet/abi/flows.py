"""Connections, fragments, counters and samples: what the datapath writes."""

from __future__ import annotations

import builtins
import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from ebpfnet.abi.numbers import DropReason, FlowFlag, FlowState, Hook
from ebpfnet.abi.record import Record
from ebpfnet.abi.services import Wire


@dataclass(frozen=True, slots=True)
class Tuple(Record):
    """One direction of one connection; key of ``flows``."""

    layout: ClassVar[struct.Struct] = struct.Struct("16s16sHHB3x")
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    protocol: int

    def pack(self) -> bytes:
        """Return the 40 bytes of the key."""
        ports = self.source_port.to_bytes(2, "big") + self.destination_port.to_bytes(2, "big")
        return self.source + self.destination + ports + bytes((self.protocol, 0, 0, 0))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a key; raises ``struct.error`` on another size."""
        source, destination, _, _, protocol = cls.layout.unpack(raw)
        return cls(source, destination, int.from_bytes(raw[32:34], "big"), int.from_bytes(raw[34:36], "big"), protocol)

    def reverse(self) -> Tuple:
        """Return the tuple of the answers."""
        return Tuple(self.destination, self.source, self.destination_port, self.source_port, self.protocol)


@dataclass(frozen=True, slots=True)
class Flow(Record):
    """Value of ``flows``."""

    layout: ClassVar[struct.Struct] = struct.Struct("40sQQQI6sHI6sHBBBBII4xQQ")
    to: Tuple
    seen_ns: int
    service: int
    bytes: int
    from_: Wire
    deliver: Wire
    state: FlowState
    flags: FlowFlag
    tcp_flags: int
    turn: int = 0
    packets: int = 0
    generation: int = 0
    egress_rule: int = 0
    ingress_rule: int = 0

    def pack(self) -> builtins.bytes:
        """Return the 120 bytes of the value."""
        head = (self.to.pack(), self.seen_ns, self.service, self.bytes)
        tail = (self.state, self.flags, self.tcp_flags, self.turn, self.packets)
        judged = (self.generation, self.egress_rule, self.ingress_rule)
        return self.layout.pack(*head, *self.from_, *self.deliver, *tail, *judged)

    @classmethod
    def unpack(cls, raw: builtins.bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        to, seen, service, size, *w, state, flags, tcp, turn, packets, generation, out, into = cls.layout.unpack(raw)
        life = (FlowState(state), FlowFlag(flags), tcp, turn, packets)
        wires = (Wire(*w[:3]), Wire(*w[3:]))
        return cls(Tuple.unpack(to), seen, service, size, *wires, *life, generation, out, into)


@dataclass(frozen=True, slots=True)
class Fragment(Record):
    """Key of ``fragments``; ``id`` is the header's number."""

    layout: ClassVar[struct.Struct] = struct.Struct("16s16sIB3x")
    source: bytes
    destination: bytes
    id: int
    protocol: int

    def pack(self) -> bytes:
        """Return the 40 bytes of the key."""
        return self.source + self.destination + self.id.to_bytes(4, "big") + bytes((self.protocol, 0, 0, 0))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a key; raises ``struct.error`` on another size."""
        source, destination, _, protocol = cls.layout.unpack(raw)
        return cls(source, destination, int.from_bytes(raw[32:36], "big"), protocol)


@dataclass(frozen=True, slots=True)
class Ports(Record):
    """Value of ``fragments``."""

    layout: ClassVar[struct.Struct] = struct.Struct("HH")
    source: int
    destination: int

    def pack(self) -> bytes:
        """Return the 4 bytes of the value."""
        return self.source.to_bytes(2, "big") + self.destination.to_bytes(2, "big")

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value."""
        return cls(int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big"))


@dataclass(frozen=True, slots=True)
class Route(Record):
    """Value of ``routes``, one for each CPU."""

    layout: ClassVar[struct.Struct] = struct.Struct("16s16sQIIIB6s6s7x")
    source: bytes
    destination: bytes
    asked_ns: int
    from_: int
    ifindex: int
    mtu: int
    tos: int
    hop_mac: bytes
    own_mac: bytes


@dataclass(frozen=True, slots=True)
class Usage(Record):
    """Value of ``usage``, one for each CPU."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQQ")
    connections: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Counter(Record):
    """Value of ``forwards`` and ``drops``, one for each CPU."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQ")
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DropSample(Record):
    """Value of ``drop_samples``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQ40sIIBB6xQ")
    sequence: int
    seen_ns: int
    tuple: Tuple
    ifindex: int
    length: int
    hook: Hook
    reason: DropReason
    rule: int = 0

    def pack(self) -> bytes:
        """Return the 80 bytes of the value."""
        head = (self.sequence, self.seen_ns, self.tuple.pack(), self.ifindex, self.length)
        return self.layout.pack(*head, self.hook, self.reason, self.rule)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        sequence, seen, key, ifindex, length, hook, reason, rule = cls.layout.unpack(raw)
        return cls(sequence, seen, Tuple.unpack(key), ifindex, length, Hook(hook), DropReason(reason), rule)
