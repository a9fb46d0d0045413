"""CRC32c from its definition (RFC 9260 appendix A, RFC 3720 §B.4), and the checksum of an SCTP packet."""

from __future__ import annotations

POLYNOMIAL = 0x1EDC6F41


def _reflected(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def _entry(byte: int) -> int:
    """Divide one byte, highest power first."""
    remainder = byte << 24
    for _ in range(8):
        remainder = (remainder << 1) ^ (POLYNOMIAL << 0 if remainder >> 31 else 0)
        remainder &= 0xFFFFFFFF
    return remainder


_TABLE = [_entry(byte) for byte in range(256)]
_BYTE = [_reflected(byte, 8) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """Return the CRC32c of ``data``: crc32c(b"123456789") is 0xE3069283."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = ((remainder << 8) & 0xFFFFFFFF) ^ _TABLE[remainder >> 24 ^ _BYTE[byte]]
    return _reflected(remainder ^ 0xFFFFFFFF, 32)


def checksum(packet: bytes) -> bytes:
    """Return the checksum field of an SCTP packet, whatever is in it."""
    return crc32c(packet[:8] + bytes(4) + packet[12:]).to_bytes(4, "little")


def sealed(packet: bytes) -> bytes:
    """Return an SCTP packet with its checksum."""
    return packet[:8] + checksum(packet) + packet[12:]
