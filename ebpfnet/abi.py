"""What the control plane and the datapath share: mirror of ``bpf/abi.h``.

``tests/unit/test_abi.py`` compares sizes, offsets and enumerators with the C side, both ways. Records are immutable
and pack to exactly the bytes that the kernel holds. Addresses are 16 raw bytes, IPv4 mapped into IPv6 (RFC 4291
§2.5.5.2); ports are host order here and network order in the kernel.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import struct
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

LAYOUT_VERSION = 1
DROP_SAMPLES = 1024
NAME_SIZE = 384
TIMEOUT_TCP_NEW_S = 60
TIMEOUT_TCP_ESTABLISHED_S = 21600
TIMEOUT_TCP_CLOSING_S = 10
TIMEOUT_DATAGRAM_NEW_S = 30
TIMEOUT_DATAGRAM_ESTABLISHED_S = 120
"""Idle seconds after which a flow is over; TCP's hold for SCTP too, the datagram ones for UDP and ICMP."""

V4_PREFIX = bytes(10) + b"\xff\xff"
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Protocol(enum.IntEnum):
    """IP protocol numbers (IANA) that the datapath knows."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


class FlowState(enum.IntEnum):
    """Where a connection is in its life."""

    NEW = 0
    ESTABLISHED = 1
    CLOSING = 2


class FlowFlag(enum.IntFlag):
    """Properties of a flow entry."""

    REPLY = 1
    NAT = 2
    BESIDE = 4


class Hook(enum.IntEnum):
    """The four programs."""

    FROM_POD = 0
    TO_POD = 1
    FROM_NETWORK = 2
    TO_NETWORK = 3


class Outcome(enum.IntEnum):
    """What became of a packet."""

    STACK = 0
    POD = 1
    NETWORK = 2
    REJECT = 3
    DROP = 4


class DropReason(enum.IntEnum):
    """Why a packet was dropped or rejected; the comments are in ``bpf/abi.h``."""

    NONE = 0
    TRUNCATED = 1
    MALFORMED = 2
    SPOOFED_ADDRESS = 3
    SPOOFED_MAC = 4
    UNSUPPORTED_ETHERTYPE = 5
    UNSUPPORTED_PROTOCOL = 6
    UNSUPPORTED_ICMP = 7
    UNSUPPORTED_EXTENSION = 8
    FRAGMENT_UNKNOWN = 9
    FLOW_UNKNOWN = 10
    FLOW_TABLE = 11
    NO_ENDPOINTS = 12
    NO_SLOT = 13
    NO_SOURCE_PORT = 14
    REWRITE = 15


DROP_MAX = 16


def pack_address(address: IPAddress) -> bytes:
    """Return the 16 bytes of an address as the tables hold it."""
    return V4_PREFIX + address.packed if address.version == 4 else address.packed


def unpack_address(raw: bytes) -> IPAddress:
    """Return the address that 16 bytes of a table mean."""
    return ipaddress.IPv4Address(raw[12:]) if raw[:12] == V4_PREFIX else ipaddress.IPv6Address(raw)


def identify(text: str) -> int:
    """Return the 64-bit id of a name: a function of the name alone, so that no id is ever allocated or restored."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


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

    layout: ClassVar[struct.Struct] = struct.Struct("QII")
    id: int
    generation: int
    count: int


@dataclass(frozen=True, slots=True)
class Slot(Record):
    """Key of ``slots``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QII")
    service: int
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


class Wire(NamedTuple):
    """The host-side end of a pod's wire; ``ifindex`` 0 means none on this node, ``segment`` 0 a wire made for us."""

    ifindex: int
    mac: bytes
    segment: int = 0


@dataclass(frozen=True, slots=True)
class Pod(Record):
    """Value of ``pods``."""

    layout: ClassVar[struct.Struct] = struct.Struct("I6sH4xQ")
    wire: Wire
    id: int

    def pack(self) -> bytes:
        """Return the 24 bytes of the value."""
        return self.layout.pack(*self.wire, self.id)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        return cls(Wire(*(fields := cls.layout.unpack(raw))[:3]), fields[3])


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

    layout: ClassVar[struct.Struct] = struct.Struct("40sQQI6sHI6sHBBB5x")
    to: Tuple
    seen_ns: int
    service: int
    from_: Wire
    deliver: Wire
    state: FlowState
    flags: FlowFlag
    tcp_flags: int

    def pack(self) -> bytes:
        """Return the 88 bytes of the value."""
        head = (self.to.pack(), self.seen_ns, self.service)
        return self.layout.pack(*head, *self.from_, *self.deliver, self.state, self.flags, self.tcp_flags)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        to, seen, service, *w, state, flags, tcp = cls.layout.unpack(raw)
        return cls(Tuple.unpack(to), seen, service, Wire(*w[:3]), Wire(*w[3:]), FlowState(state), FlowFlag(flags), tcp)


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
class Counter(Record):
    """Value of ``forwards`` and ``drops``, one for each CPU."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQ")
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DropSample(Record):
    """Value of ``drop_samples``."""

    layout: ClassVar[struct.Struct] = struct.Struct("QQ40sIIBB6x")
    sequence: int
    seen_ns: int
    tuple: Tuple
    ifindex: int
    length: int
    hook: Hook
    reason: DropReason

    def pack(self) -> bytes:
        """Return the 72 bytes of the value."""
        head = (self.sequence, self.seen_ns, self.tuple.pack(), self.ifindex, self.length)
        return self.layout.pack(*head, self.hook, self.reason)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Read a value; raises ``struct.error`` on another size."""
        sequence, seen, key, ifindex, length, hook, reason = cls.layout.unpack(raw)
        return cls(sequence, seen, Tuple.unpack(key), ifindex, length, Hook(hook), DropReason(reason))


def pack_name(text: str) -> bytes:
    """Return a value of ``names``; raises ``ValueError`` for more than 383 bytes of UTF-8."""
    raw = text.encode()
    if len(raw) >= NAME_SIZE:
        raise ValueError(f"name of {len(raw)} bytes does not fit {NAME_SIZE - 1}")
    return raw.ljust(NAME_SIZE, b"\0")


def unpack_name(raw: bytes) -> str:
    """Return the text of a value of ``names``."""
    return raw.split(b"\0", 1)[0].decode()


class MapType(enum.IntEnum):
    """``enum bpf_map_type`` of include/uapi/linux/bpf.h, as far as we use it."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9


BPF_F_NO_PREALLOC = 1


class TableSpec(NamedTuple):
    """What a map in the kernel must look like; a pinned map that differs is refused."""

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec("services", MapType.HASH, Frontend.size(), Service.size(), 65_536, BPF_F_NO_PREALLOC),
        TableSpec("slots", MapType.HASH, Slot.size(), Backend.size(), 524_288, BPF_F_NO_PREALLOC),
        TableSpec("pods", MapType.HASH, 16, Pod.size(), 4_096, BPF_F_NO_PREALLOC),
        TableSpec("flows", MapType.LRU_HASH, Tuple.size(), Flow.size(), 262_144),
        TableSpec("fragments", MapType.LRU_HASH, Fragment.size(), Ports.size(), 8_192),
        TableSpec("names", MapType.HASH, 8, NAME_SIZE, 131_072, BPF_F_NO_PREALLOC),
        TableSpec("forwards", MapType.PERCPU_ARRAY, 4, Counter.size(), len(Hook) * len(Outcome)),
        TableSpec("drops", MapType.PERCPU_ARRAY, 4, Counter.size(), len(Hook) * DROP_MAX),
        TableSpec("drop_samples", MapType.ARRAY, 4, DropSample.size(), DROP_SAMPLES),
        TableSpec("drop_sequence", MapType.ARRAY, 4, 8, 1),
        TableSpec("layout", MapType.ARRAY, 4, 8, 1),
    )
}
"""Every map. ``layout`` holds LAYOUT_VERSION; max_entries is the default, which the agent's flags may change."""
PROGRAMS: tuple[str, ...] = (*(hook.name.lower() for hook in Hook), "from_pod_beside", "to_pod_beside")
"""Names of the programs, in the order of ``Hook``; last what stands in on another CNI plugin's wires."""
