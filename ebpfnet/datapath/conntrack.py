"""The kernel's own connection table, as far as somebody else's NAT is in it: read, and cleared of it by connection."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ebpfnet.abi import V4_PREFIX, Protocol, Tuple
from ebpfnet.datapath.netlink import Attributes, Reader, attribute, attributes

# include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h
_NEW, _GET, _DELETE = 1 << 8, 1 << 8 | 1, 1 << 8 | 2
_HEAD = struct.Struct("=BBH")  # struct nfgenmsg
_FAMILIES = (2, 10)
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _ZONE = 1, 2, 3, 4, 7, 18
_IP, _PROTO = 1, 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_SEEN_REPLY, _ASSURED, _CONFIRMED, _DESTINATION_NAT = 0x2, 0x4, 0x8, 0x20
_NESTED = 0x8000
_INFO = {Protocol.TCP: 1, Protocol.SCTP: 3}
_STATE, _TCP_ESTABLISHED = 1, 3
_TCP_FLAGS, _BE_LIBERAL = (4, 5), b"\x08\x08"  # of both directions: windows that it has not seen are no error
_LASTS_S = 3600
ATTEMPTS = 100
# Established, or half closed: TCP_CONNTRACK_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT; SCTP_CONNTRACK_ESTABLISHED.
_LASTS = {Protocol.TCP: {3, 4, 5}, Protocol.SCTP: {4}}


class Translated(NamedTuple):
    """A connection whose destination the kernel changes: the client's packets and the answers, as they come in."""

    question: Tuple
    answer: Tuple


def translated(reader: Reader) -> Iterator[Translated]:
    """Yield connections that both sides use and whose destination is translated; ``reader`` is for ``NETFILTER``.

    None where the kernel has no connection tracking. Raises ``OSError``.
    """
    for family in _FAMILIES:
        try:
            for message in reader.ask(_GET, _HEAD.pack(family, 0, 0)):
                if found := _translated(message.attributes):
                    yield found
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT}:
                raise


def forget(reader: Reader, question: Tuple) -> None:
    """Remove a connection from the table; one that is not there is no error."""
    try:
        reader.tell(_DELETE, _head(question), _ends(_ORIGINAL, question))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def untranslate(reader: Reader, question: Tuple) -> None:
    """Let the kernel know a connection as one that nobody translates, of which it has seen both sides.

    While the rules of the NAT are there, a connection that is only forgotten is a new one to them at its next packet
    (Linux nf_conntrack_proto_tcp.c, tcp_new: it need not begin with a SYN). Of one that is known nobody asks them
    (nf_nat_core.c, nf_nat_inet_fn). A packet that comes in between is outrun by the next attempt.
    """
    status = _SEEN_REPLY | _ASSURED | _CONFIRMED
    said = [_ends(_ORIGINAL, question), _ends(_REPLY, question.reverse())]
    said += [attribute(kind, value.to_bytes(4, "big")) for kind, value in ((_STATUS, status), (_TIMEOUT, _LASTS_S))]
    if question.protocol == Protocol.TCP:
        info = attribute(_STATE, bytes((_TCP_ESTABLISHED,)))
        info += b"".join(attribute(kind, _BE_LIBERAL) for kind in _TCP_FLAGS)
        said.append(attribute(_PROTOINFO | _NESTED, attribute(_INFO[Protocol.TCP] | _NESTED, info)))
    for attempt in range(ATTEMPTS):
        forget(reader, question)
        try:
            reader.tell(_NEW, _head(question), *said, make=True)
            return
        except OSError as error:
            if error.errno != errno.EEXIST or attempt == ATTEMPTS - 1:
                raise


def _head(question: Tuple) -> bytes:
    return _HEAD.pack(_FAMILIES[not question.source.startswith(V4_PREFIX)], 0, 0)


def _ends(direction: int, said: Tuple) -> bytes:
    """Return the attribute that one direction's packets are known by."""
    mapped = said.source.startswith(V4_PREFIX)
    kinds = (_V4_SOURCE, _V4_DESTINATION) if mapped else (_V6_SOURCE, _V6_DESTINATION)
    addresses = [each[12:] if mapped else each for each in (said.source, said.destination)]
    ip = b"".join(attribute(kind, raw) for kind, raw in zip(kinds, addresses, strict=True))
    proto = attribute(_NUMBER, bytes((said.protocol,)))
    proto += attribute(_SOURCE_PORT, said.source_port.to_bytes(2, "big"))
    proto += attribute(_DESTINATION_PORT, said.destination_port.to_bytes(2, "big"))
    return attribute(direction | _NESTED, attribute(_IP | _NESTED, ip) + attribute(_PROTO | _NESTED, proto))


def _translated(found: Attributes) -> Translated | None:
    status = int.from_bytes(found.get(_STATUS, b""), "big")
    if not status & _DESTINATION_NAT or _ZONE in found:
        return None
    question, answer = _tuple(found[_ORIGINAL]), _tuple(found[_REPLY])
    if question is None or answer is None:
        return None
    if question.protocol in _LASTS:
        info = attributes(found.get(_PROTOINFO, b"")).get(_INFO[Protocol(question.protocol)], b"")
        state = attributes(info).get(_STATE, b"\0")[0]
        return Translated(question, answer) if state in _LASTS[Protocol(question.protocol)] else None
    return Translated(question, answer) if status & _ASSURED else None


def _tuple(raw: bytes) -> Tuple | None:
    """Return one direction; None for what has no ports or is of no protocol that services have."""
    parts = attributes(raw)
    ip, proto = attributes(parts.get(_IP, b"")), attributes(parts.get(_PROTO, b""))
    number = proto.get(_NUMBER, b"\0")[0]
    if number not in {Protocol.TCP, Protocol.UDP, Protocol.SCTP}:
        return None
    four = _V4_SOURCE in ip
    source = V4_PREFIX + ip[_V4_SOURCE] if four else ip[_V6_SOURCE]
    destination = V4_PREFIX + ip[_V4_DESTINATION] if four else ip[_V6_DESTINATION]
    source_port, destination_port = (int.from_bytes(proto[each], "big") for each in (_SOURCE_PORT, _DESTINATION_PORT))
    return Tuple(source, destination, source_port, destination_port, number)
