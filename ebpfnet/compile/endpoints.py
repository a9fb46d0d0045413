"""Endpoint slices to pieces of endpoint sets, and which endpoints a set has: kube-proxy's rules, word for word.

A slice is compiled once, to a piece for each of its ports: packed backends by what their conditions, node and hints
make of them. Which of these runs a set is made of (``Choice``) follows from all the pieces of a service's port, as in
pkg/proxy/topology.go of Kubernetes 1.35: ``CategorizeEndpoints`` and ``topologyModeFromHints``.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.model import endpoints
from ebpfnet.model.facts import EndpointSlice, Hint

RECORD = abi.Backend.size()
STEP = endpoints.RECORD
# Plain numbers: an IntFlag's "&" costs as much as all else of an endpoint.
READY, SERVING, TERMINATING = (int(each) for each in endpoints.Condition)
HEALTHY = READY | SERVING
LEAVING = SERVING | TERMINATING


class Place(NamedTuple):
    """Where this node is, as far as the choice of endpoints goes; ``zone`` is empty where nobody says."""

    node: str
    zone: str = ""


class Topology(NamedTuple):
    """What hints make of a piece's ready endpoints at one place."""

    here: bytes  # those that are hinted for this node
    near: bytes  # and for its zone
    all_node: bool  # every one has a hint of nodes
    all_zone: bool


class Others(NamedTuple):
    """What is in a slice and not ready; most have none of these."""

    leaving: bytes = b""  # serving and terminating: taken when nothing is ready
    leaving_here: bytes = b""  # of these, on this node
    serving: bytes = b""
    unready: bytes = b""


NO_OTHERS = Others()


class Piece(NamedTuple):
    """What a slice says of one port of its service: runs of packed backends, each backend once."""

    ready: bytes
    ready_here: bytes = b""  # on this node
    others: Others = NO_OTHERS
    hints: tuple[Hint, ...] = ()  # beside ``ready``; () where there are none
    weight: int = 1
    topology: Topology | None = None  # what ``hints`` mean at the place it was made for

    @property
    def listed(self) -> bytes:
        """Every backend of it, whatever its conditions."""
        return self.ready + self.others.leaving + self.others.serving + self.others.unready


class Choice(enum.IntEnum):
    """Which of its pieces' runs an endpoint set is made of."""

    READY = 0
    NODE = 1
    ZONE = 2
    LEAVING = 3
    READY_HERE = 4
    LEAVING_HERE = 5
    ELSEWHERE = 6  # none: they are on other nodes


def set_name(namespace: str, service: str, port: str, protocol: int, *, ipv6: bool, local: bool = False) -> str:
    """Return the name that an endpoint set's id is made of; ``port`` is the port's name, which may be empty."""
    return f"{namespace}/{service}:{port}/{protocol}{'#6' if ipv6 else ''}{'#local' if local else ''}"


class _Sorted(NamedTuple):
    """Addresses of a slice by what they are, each once."""

    ready: Sequence[bytes]
    ready_here: Collection[bytes]
    leaving: Collection[bytes] = ()
    leaving_here: Collection[bytes] = ()
    serving: Collection[bytes] = ()
    unready: Collection[bytes] = ()
    hints: tuple[Hint, ...] = ()


def _sort(piece: EndpointSlice, node: str) -> _Sorted:
    run = piece.endpoints
    conditions = run[STEP - 1 :: STEP]
    addresses = [run[at : at + 16] for at in range(0, len(run), STEP)]
    here = {address for address, on in zip(addresses, piece.nodes, strict=True) if on == node} if piece.nodes else set()
    if not piece.hints and conditions.count(HEALTHY) == len(conditions):  # nearly always
        ready = dict.fromkeys(addresses)
        return _Sorted(list(ready), [address for address in ready if address in here])
    hints = piece.hints or (Hint(),) * len(addresses)
    ready_hints: dict[bytes, Hint] = {}
    leaving, serving, unready = dict[bytes, None](), dict[bytes, None](), dict[bytes, None]()
    for address, condition, hint in zip(addresses, conditions, hints, strict=True):
        if condition & READY:
            ready_hints.setdefault(address, hint)
        elif condition & LEAVING == LEAVING:
            leaving[address] = None
        elif condition & SERVING:
            serving[address] = None
        else:
            unready[address] = None
    # An endpoint that stands in a slice twice is what serves best.
    left = [each for each in leaving if each not in ready_hints]
    return _Sorted(
        list(ready_hints),
        [each for each in ready_hints if each in here],
        left,
        [each for each in left if each in here],
        [each for each in serving if each not in ready_hints and each not in leaving],
        [each for each in unready if each not in ready_hints and each not in leaving and each not in serving],
        tuple(ready_hints.values()) if piece.hints else (),
    )


def compile_slice(piece: EndpointSlice, place: Place) -> dict[int, Piece]:
    """Return what a slice adds to its service's ports: id of the port's set of all endpoints, to a piece."""
    found = _sort(piece, place.node)
    out = {}
    for port in piece.ports:
        name = set_name(piece.ref.namespace, piece.service, port.name, port.protocol, ipv6=piece.ipv6)
        tail = port.port.to_bytes(2, "big") + b"\0\0"

        def packed(addresses: Iterable[bytes], tail: bytes = tail) -> bytes:
            return b"".join([address + tail for address in addresses])

        others = NO_OTHERS
        if found.leaving or found.serving or found.unready:
            others = Others(*map(packed, (found.leaving, found.leaving_here, found.serving, found.unready)))
        ready = packed(found.ready)
        here = ready if len(found.ready_here) == len(found.ready) else packed(found.ready_here)  # nothing held twice
        made = Piece(ready, here, others, found.hints, piece.weight)
        out[abi.identify(name)] = placed(made, place) if found.hints else made
    return out


def placed(piece: Piece, place: Place) -> Piece:
    """Return a piece with what its hints mean at a place."""
    if not piece.hints:
        return piece
    records = [piece.ready[at : at + RECORD] for at in range(0, len(piece.ready), RECORD)]
    pairs = list(zip(records, piece.hints, strict=True))
    return piece._replace(
        topology=Topology(
            b"".join([record for record, hint in pairs if place.node in hint.nodes]),
            b"".join([record for record, hint in pairs if place.zone in hint.zones]),
            all(hint.nodes for hint in piece.hints),
            all(hint.zones for hint in piece.hints),
        )
    )


def choose(pieces: Iterable[Piece]) -> Choice:
    """Return which endpoints serve traffic of policy Cluster.

    Hints count only if every ready endpoint has one, and one of them is for us; when nothing is ready, what is serving
    while it terminates is taken, whatever its hints.
    """
    ready = [piece.topology for piece in pieces if piece.ready]
    if not ready:
        return Choice.LEAVING
    hinted = [each for each in ready if each is not None]
    if len(hinted) < len(ready):
        return Choice.READY
    if all(each.all_node for each in hinted) and any(each.here for each in hinted):
        return Choice.NODE
    if all(each.all_zone for each in hinted) and any(each.near for each in hinted):
        return Choice.ZONE
    return Choice.READY


def choose_local(pieces: Collection[Piece]) -> Choice:
    """Return which endpoints serve traffic of policy Local."""
    if any(piece.ready_here for piece in pieces):
        return Choice.READY_HERE
    if any(piece.others.leaving_here for piece in pieces):
        return Choice.LEAVING_HERE
    usable = any(piece.ready or piece.others.leaving for piece in pieces)
    return Choice.ELSEWHERE if usable else Choice.LEAVING_HERE


def chosen(piece: Piece, choice: Choice) -> bytes:
    """Return what a piece adds to a set."""
    match choice:
        case Choice.READY:
            return piece.ready
        case Choice.NODE:
            return piece.topology.here if piece.topology else b""
        case Choice.ZONE:
            return piece.topology.near if piece.topology else b""
        case Choice.LEAVING:
            return piece.others.leaving
        case Choice.READY_HERE:
            return piece.ready_here
        case Choice.LEAVING_HERE:
            return piece.others.leaving_here
        case Choice.ELSEWHERE:
            return b""
