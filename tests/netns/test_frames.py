"""Frames that no socket of a pod makes: of a VLAN, to addresses that nobody has, to another machine's MAC."""

from __future__ import annotations

import socket

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from ebpfnet.abi import DropReason
from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.lab.topology import PodPlan
from tests.netns import objects
from tests.netns.test_spoofing import drops

ETH_P_ALL = 3


def test_a_pod_does_not_choose_a_vlan(lab: Lab, caller: Inside, family: int):
    target = lab.pod(objects.FAR_DNS)
    client.udp(caller, target.of(family), 5353)  # the route and the neighbour are known
    plan = lab.plan.pod(caller.name)
    assert isinstance(plan, PodPlan)
    before = drops(lab, DropReason.UNSUPPORTED_ETHERTYPE)
    header = Ether(src=plan.mac, dst=plan.host_mac)
    tagged = header / Dot1Q(vlan=100) / datagram(caller, target, family, b"tagged")
    plain = header / datagram(caller, target, family, b"plain")
    with listener(lab.node("node-b"), "uplink") as wire:
        send(caller, "eth0", [tagged, plain])
        assert first_of(wire, b"tagged", b"plain") == b"plain"
    assert drops(lab, DropReason.UNSUPPORTED_ETHERTYPE) - before == 1


def datagram(caller: Inside, target: Inside, family: int, payload: bytes) -> Packet:
    """Return an IP packet between two places."""
    network = IPv6 if family == socket.AF_INET6 else IP
    return network(src=caller.of(family), dst=target.of(family)) / UDP(sport=5000, dport=7777) / payload


def listener(place: Inside, device: str) -> socket.socket:
    """Return a socket that hears everything that comes in from a device."""
    wire = place.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.settimeout(3)
    wire.bind((device, ETH_P_ALL))
    return wire


def send(place: Inside, device: str, frames: list[Packet]) -> None:
    """Put frames on a wire as they are."""
    with place.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, 0))
        for frame in frames:
            wire.send(bytes(frame))


def first_of(wire: socket.socket, *payloads: bytes) -> bytes:
    """Return which of the payloads comes first; the listener hears other traffic too."""
    while True:
        heard = wire.recv(2000)
        for payload in payloads:
            if heard.endswith(payload):
                return payload


def test_a_frame_for_another_host_reaches_no_pod(lab: Lab, caller: Inside, family: int):
    far = lab.node("node-b")
    node_mac = next(node.mac for node in lab.plan.nodes if node.name == "node-a")
    frames = [
        Ether(src="02:aa:aa:aa:aa:aa", dst=mac) / datagram(far, caller, family, payload)
        for mac, payload in (("02:de:ad:be:ef:01", b"another's"), (node_mac, b"ours"))
    ]
    with listener(caller, "eth0") as wire:
        send(far, "uplink", frames)
        assert first_of(wire, b"another's", b"ours") == b"ours"
