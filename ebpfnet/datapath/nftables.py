"""Names of nf_tables' tables and chains, asked of the kernel itself: `nft` and `iptables-nft` need not be there."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet.datapath.netlink import NETFILTER, Reader

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN = _SUBSYSTEM | 1, _SUBSYSTEM | 4
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 1, 3
_HEAD = struct.Struct("=BBH")  # struct nfgenmsg
FAMILIES = {2: "ip", 10: "ip6"}


class Chain(NamedTuple):
    """A chain, or with an empty name a table. ``family`` as `nft` spells it."""

    family: str
    table: str
    name: str = ""


def listed() -> set[Chain]:
    """Return the tables and chains of IPv4 and IPv6; none where the kernel has no nf_tables. Raises ``OSError``."""
    with Reader(NETFILTER) as reader:
        return set(_tables(reader)) | set(_chains(reader))


def _tables(reader: Reader) -> Iterator[Chain]:
    for family, found in _ask(reader, _GETTABLE):
        yield Chain(family, _text(found.get(_TABLE_NAME, b"")))


def _chains(reader: Reader) -> Iterator[Chain]:
    for family, found in _ask(reader, _GETCHAIN):
        yield Chain(family, _text(found.get(_CHAIN_TABLE, b"")), _text(found.get(_CHAIN_NAME, b"")))


def _ask(reader: Reader, kind: int) -> Iterator[tuple[str, dict[int, bytes]]]:
    for number, family in FAMILIES.items():
        try:
            for message in reader.ask(kind, _HEAD.pack(number, 0, 0)):
                yield family, dict(message.attributes)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP}:
                raise


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
