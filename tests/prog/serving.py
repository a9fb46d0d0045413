"""Services of every kind in the tables of a packet test."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scapy.all import IP, SCTP, TCP, UDP, Ether, IPv6, Packet

from ebpfnet import abi
from tests import packets
from tests.packets import CLIENT_PORT, SERVICE_PORT, Ends
from tests.prog.loaded import Datapath, Result

TRANSPORTS: dict[str, tuple[int, Callable[..., Packet]]] = {
    "tcp": (6, packets.tcp),
    "udp": (17, packets.udp),
    "sctp": (132, packets.sctp),
}
"""Protocol number and builder of a first packet."""


class Called(NamedTuple):
    """Who talks to whom."""

    source: str
    destination: str
    source_port: int
    destination_port: int


def ip_of(packet: Packet) -> IP | IPv6:
    """Return a packet's IP header."""
    return packet[IPv6] if IPv6 in packet else packet[IP]


def ends_of(got: Result | bytes) -> Called:
    """Return who talks to whom in what came out."""
    packet = Ether(got if isinstance(got, bytes) else got.raw)
    transport = next(packet[kind] for kind in (TCP, UDP, SCTP) if kind in packet)
    return Called(ip_of(packet).src, ip_of(packet).dst, transport.sport, transport.dport)


def calls(ends: Ends, protocol: str, *, port: int = SERVICE_PORT, sport: int = CLIENT_PORT, to: str = "") -> Packet:
    """Return the first packet of a connection from Alice to the service, or to address ``to``."""
    transport = TRANSPORTS[protocol][1](dport=port, sport=sport)
    return packets.ethernet() / packets.ip(ends.alice, to or ends.service) / transport


def put_set(datapath: Datapath, tag: int, backends: Sequence[tuple[str, int]], flags: int = 0) -> None:
    """Write an endpoint set, its slots and members."""
    datapath.tables["sets"].put(tag.to_bytes(8, "little"), abi.Set(1, len(backends), flags).pack())
    for index, (address, port) in enumerate(backends):
        backend = abi.Backend(packets.raw(address), port)
        datapath.tables["slots"].put(abi.Slot(tag, 1, index).pack(), backend.pack())
        datapath.tables["members"].put(abi.Member(tag, backend).pack(), (1).to_bytes(4, "little"))


def put_frontend(datapath: Datapath, address: str, service: abi.Service, port: int, protocol: int) -> None:
    """Write a frontend."""
    datapath.tables["services"].put(abi.Frontend(packets.raw(address), port, protocol).pack(), service.pack())


def mark(datapath: Datapath, address: str, marks: abi.Mark) -> None:
    """Say what an address is."""
    put_frontend(datapath, address, abi.Service(0, 0, marks=marks), 0, 0)


def put_block(datapath: Datapath, block: str, kind: abi.BlockKind) -> None:
    """Say what the addresses of a block are."""
    network = ipaddress.ip_network(block)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    key = abi.Block(length, abi.pack_address(network.network_address)).pack()
    datapath.tables["blocks"].put(key, int(kind).to_bytes(4, "little"))


def put_range(datapath: Datapath, service: int, block: str) -> None:
    """Serve the clients of a block."""
    network = ipaddress.ip_network(block)
    length = 64 + network.prefixlen + (96 if network.version == 4 else 0)
    key = abi.Range(length, service, abi.pack_address(network.network_address)).pack()
    datapath.tables["ranges"].put(key, (1).to_bytes(4, "little"))
