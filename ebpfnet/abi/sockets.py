"""What the shortcut at connect time knows: whose sockets it may touch, and which it did."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from ebpfnet.abi.record import Record
from ebpfnet.abi.services import Backend, Frontend


@dataclass(frozen=True, slots=True)
class Netns(Record):
    """Key of ``namespaces``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QI4x")
    cookie: int
    ipv6: int


@dataclass(frozen=True, slots=True)
class Socket(Record):
    """Value of ``sockets``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQ20s20s")
    set: int
    namespace: int
    asked: Frontend
    given: Backend

    def pack(self) -> bytes:
        """Return the 56 bytes of the value."""
        return self.layout.pack(self.set, self.namespace, self.asked.pack(), self.given.pack())

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        identity, namespace, asked, given = cls.layout.unpack(raw)
        return cls(identity, namespace, Frontend.unpack(asked), Backend.unpack(given))
