"""Policies: what the control plane writes and the datapath judges by."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from ebpfnet.abi.numbers import Direction, Verdict
from ebpfnet.abi.record import Record


@dataclass(frozen=True, slots=True)
class RuleKey(Record):
    """Key of ``rules``; ``peers`` is a class, 0 that of everybody who has no entry of his own."""

    layout: ClassVar[struct.Struct] = struct.Struct("QIB3x")
    group: int
    peers: int
    direction: Direction


@dataclass(frozen=True, slots=True)
class Rule(Record):
    """Value of ``rules`` and ``rule_ports``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQIBB2x")
    id: int
    ports: int = 0
    lengths: int = 0
    verdict: Verdict = Verdict.DENY
    flags: int = 0

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        identity, ports, lengths, verdict, flags = cls.layout.unpack(raw)
        return cls(identity, ports, lengths, Verdict(verdict), flags)


@dataclass(frozen=True, slots=True)
class PortRange(Record):
    """Key of ``rule_ports``: ports whose first ``length`` bits are those of ``port``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QHBB4x")
    ports: int
    port: int
    length: int
    protocol: int

    def pack(self) -> bytes:
        """Return the 16 bytes of the key."""
        rest = self.port.to_bytes(2, "big") + bytes((self.length, self.protocol, 0, 0, 0, 0))
        return self.ports.to_bytes(8, "little") + rest

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a key; raises ``struct.error`` on another size."""
        ports, _, length, protocol = cls.layout.unpack(raw)
        return cls(ports, int.from_bytes(raw[8:10], "big"), length, protocol)


@dataclass(frozen=True, slots=True)
class Hits(Record):
    """Value of ``rule_hits``, one for each CPU."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQQ")
    allowed: int
    denied: int
    audited: int
