"""Direct server return in a packet test: services with the annotation, and second headers."""

from __future__ import annotations

from scapy.all import IP, Ether, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import Mark, Outcome
from tests import packets
from tests.packets import POD_PORT, SERVICE_PORT, Ends
from tests.prog.loaded import Result
from tests.prog.serving import ip_of, mark, put_frontend, put_set
from tests.prog.uplink import NODE_PORT, OUR_MAC, ROUTER_MAC, Uplink

PEER = {False: "192.0.2.3", True: "2001:db8:7::3"}
"""Another node, which clients call."""
BOTH = Mark.DIRECT | Mark.TAKEN
OVERHEAD = {False: 20, True: 40}


def anywhere(ends: Ends) -> str:
    """Return the address that NodePorts have."""
    return "::" if ends.ipv6 else "0.0.0.0"


def balancer(ends: Ends) -> str:
    """Return a load balancer's address."""
    return "2001:db8:99::1" if ends.ipv6 else "203.0.113.1"


def serve(uplink: Uplink, backend: str, protocol: int = 6, marks: Mark = BOTH, *, ranges: int = 0) -> None:
    """Let NodePort and load balancer lead to one backend, with these marks; both nodes' addresses are Nodes'."""
    ends, tag = uplink.ends, 8000 + protocol
    put_set(uplink.datapath, tag, [(getattr(ends, backend, backend), POD_PORT)])
    service = abi.Service(tag, tag, marks=marks)
    put_frontend(uplink.datapath, anywhere(ends), service, NODE_PORT, protocol)
    service = abi.Service(tag, tag, ranges, marks=marks | Mark.BALANCER)
    put_frontend(uplink.datapath, balancer(ends), service, SERVICE_PORT, protocol)
    mark(uplink.datapath, uplink.node, Mark.OWN | Mark.NODEPORTS | Mark.NODE)
    mark(uplink.datapath, PEER[ends.ipv6], Mark.NODE)


def wrapped(uplink: Uplink, inner: Packet, backend: str, port: int = POD_PORT, source: str = "") -> Packet:
    """Return what another node sends on: a packet to a backend, in a second header."""
    source, target = source or PEER[uplink.ends.ipv6], getattr(uplink.ends, backend, backend)
    if uplink.ends.ipv6:
        header = IPv6(src=source, dst=target, fl=port, hlim=63)
    else:
        header = IP(src=source, dst=target, id=port, flags="DF", ttl=63)
    return Ether(src=ROUTER_MAC, dst=OUR_MAC) / header / inner


def asked(uplink: Uplink, transport: Packet, to: str = "", **fields: int) -> Packet:
    """Return a client's packet to the other node, or another address, as that node sent it on."""
    return packets.ip(uplink.ends.outside, to or PEER[uplink.ends.ipv6], ttl=61, **fields) / transport


def inside(got: Result) -> Packet:
    """Return the packet in a second header."""
    return ip_of(got.packet).payload


def port_of(got: Result) -> int:
    """Return the backend's port that a second header names."""
    header = ip_of(got.packet)
    return int(header.fl & 0xFFFF if isinstance(header, IPv6) else header.id)


def is_direct(got: Result) -> bool:
    """Tell whether a packet was sent on in a second header."""
    return got.outcome == Outcome.NETWORK and isinstance(inside(got), IP | IPv6)
