"""Services, endpoint sets and pods: what the control plane writes and the datapath reads."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from ebpfnet.abi.record import Record


@dataclass(frozen=True, slots=True)
class Frontend(Record):
    """Key of ``services``."""

    layout: ClassVar[struct.Struct] = struct.Struct("16sHBx")
    address: bytes
    port: int
    protocol: int

    def pack(self) -> bytes:
        """Return the 20 bytes of the key."""
        return self.address + self.port.to_bytes(2, "big") + bytes((self.protocol, 0))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a key; raises ``struct.error`` on another size."""
        address, _, protocol = cls.layout.unpack(raw)
        return cls(address, int.from_bytes(raw[16:18], "big"), protocol)


@dataclass(frozen=True, slots=True)
class Service(Record):
    """Value of ``services``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQQIH2x")
    inside: int
    outside: int
    ranges: int = 0
    affinity_s: int = 0
    marks: int = 0


@dataclass(frozen=True, slots=True)
class Set(Record):
    """Value of ``sets``."""

    layout: ClassVar[struct.Struct] = struct.Struct("III4x")
    generation: int
    count: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Slot(Record):
    """Key of ``slots``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QII")
    set: int
    generation: int
    index: int


@dataclass(frozen=True, slots=True)
class Backend(Record):
    """Value of ``slots``."""

    layout: ClassVar[struct.Struct] = struct.Struct("16sHxx")
    address: bytes
    port: int

    def pack(self) -> bytes:
        """Return the 20 bytes of the value."""
        return self.address + self.port.to_bytes(2, "big") + b"\0\0"

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        (address, _) = cls.layout.unpack(raw)
        return cls(address, int.from_bytes(raw[16:18], "big"))


@dataclass(frozen=True, slots=True)
class Member(Record):
    """Key of ``members`` and ``usage``."""

    layout: ClassVar[struct.Struct] = struct.Struct("Q20s4x")
    set: int
    backend: Backend

    def pack(self) -> bytes:
        """Return the 32 bytes of the key."""
        return self.layout.pack(self.set, self.backend.pack())

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a key; raises ``struct.error`` on another size."""
        identity, backend = cls.layout.unpack(raw)
        return cls(identity, Backend.unpack(backend))


@dataclass(frozen=True, slots=True)
class Client(Record):
    """Key of ``affinity``."""

    layout: ClassVar[struct.Struct] = struct.Struct("Q16s")
    set: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Affinity(Record):
    """Value of ``affinity``."""

    layout: ClassVar[struct.Struct] = struct.Struct("Q20s4x")
    seen_ns: int
    backend: Backend

    def pack(self) -> bytes:
        """Return the 32 bytes of the value."""
        return self.layout.pack(self.seen_ns, self.backend.pack())

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        seen, backend = cls.layout.unpack(raw)
        return cls(seen, Backend.unpack(backend))


@dataclass(frozen=True, slots=True)
class Range(Record):
    """Key of ``ranges``; ``prefix_length`` is what the trie compares: the id's bits included."""

    layout: ClassVar[struct.Struct] = struct.Struct("=IQ16s")
    prefix_length: int
    service: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Block(Record):
    """Key of ``blocks``; ``prefix_length`` is that of the mapped address."""

    layout: ClassVar[struct.Struct] = struct.Struct("I16s")
    prefix_length: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Node(Record):
    """The value of ``node``: an address of each family or zeros, and a range of ports."""

    layout: ClassVar[struct.Struct] = struct.Struct("16s16sHH4x")
    ipv4: bytes
    ipv6: bytes
    first_port: int
    last_port: int


class Wire(NamedTuple):
    """The host-side end of a pod's wire; ``ifindex`` 0 means none on this node, ``segment`` 0 a wire made for us."""

    ifindex: int
    mac: bytes
    segment: int = 0


@dataclass(frozen=True, slots=True)
class Pod(Record):
    """Value of ``pods``."""

    layout: ClassVar[struct.Struct] = struct.Struct("I6sH4xQQ")
    wire: Wire
    id: int
    group: int = 0

    def pack(self) -> bytes:
        """Return the 32 bytes of the value."""
        return self.layout.pack(*self.wire, self.id, self.group)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        return cls(Wire(*(fields := cls.layout.unpack(raw))[:3]), *fields[3:])
