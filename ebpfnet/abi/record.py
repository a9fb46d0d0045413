"""What all records share: packing, addresses, ids and names."""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from typing import ClassVar, Self

from ebpfnet.abi.numbers import NAME_SIZE

V4_PREFIX = bytes(10) + b"\xff\xff"
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def pack_address(address: IPAddress) -> bytes:
    """Return the 16 bytes of an address as the tables hold it."""
    return V4_PREFIX + address.packed if address.version == 4 else address.packed


def unpack_address(raw: bytes) -> IPAddress:
    """Return the address that 16 bytes of a table mean."""
    return ipaddress.IPv4Address(raw[12:]) if raw[:12] == V4_PREFIX else ipaddress.IPv6Address(raw)


def identify(text: str) -> int:
    """Return the 64-bit id of a name: a function of the name alone, so that no id is ever allocated or restored."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def continued(identity: int) -> int:
    """Return the id under which ``names`` has what did not fit under another, if anything: itself one such piece."""
    return identify(f"more of {identity:016x}")


class Record:
    """Packing shared by all records; ``layout`` is a ``struct`` format in native order, padding written out."""

    layout: ClassVar[struct.Struct]

    @classmethod
    def size(cls) -> int:
        """Return the record's size in bytes."""
        return cls.layout.size

    def pack(self) -> bytes:
        """Return the bytes of the record, ``size()`` of them."""
        return self.layout.pack(*(getattr(self, name) for name in self.__match_args__))  # type: ignore[attr-defined]

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a record; raises ``struct.error`` on another size."""
        return cls(*cls.layout.unpack(raw))


def pack_name(text: str) -> bytes:
    """Return a value of ``names``; raises ``ValueError`` for more than 383 bytes of UTF-8."""
    raw = text.encode()
    if len(raw) >= NAME_SIZE:
        raise ValueError(f"name of {len(raw)} bytes does not fit {NAME_SIZE - 1}")
    return raw.ljust(NAME_SIZE, b"\0")


def unpack_name(raw: bytes) -> str:
    """Return the text of a value of ``names``."""
    return raw.split(b"\0", 1)[0].decode()
