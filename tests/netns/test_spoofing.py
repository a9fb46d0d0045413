"""A pod sends from its own addresses and MAC only; what it forges is dropped and counted by reason."""

from __future__ import annotations

import socket
import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from ebpfnet import abi
from ebpfnet.abi import DropReason, Hook
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.lab.topology import PodPlan
from ebpfnet.maps import pins
from tests.netns import objects

PORT = 7777


def test_an_address_that_is_not_the_pods(lab: Lab, caller: Inside, family: int):
    nobody = "fd00:10:244:1::99" if family == socket.AF_INET6 else "10.244.1.99"
    assert first_to_arrive(lab, caller, family, source=nobody, mac=None) == b"honest"


def test_an_address_of_another_pod(lab: Lab, caller: Inside, family: int):
    assert first_to_arrive(lab, caller, family, source=lab.pod("web-a").of(family), mac=None) == b"honest"


def test_a_mac_that_is_not_the_pods(lab: Lab, caller: Inside, family: int):
    forged = "02:de:ad:be:ef:01"
    assert first_to_arrive(lab, caller, family, source=caller.of(family), mac=forged) == b"honest"


@pytest.mark.parametrize(
    ("source", "mac", "reason"),
    [("10.244.1.99", None, DropReason.SPOOFED_ADDRESS), (None, "02:de:ad:be:ef:01", DropReason.SPOOFED_MAC)],
)
def test_forged_packets_are_counted(lab: Lab, caller: Inside, source: str | None, mac: str | None, reason: DropReason):
    before = drops(lab, reason)
    send(lab, caller, socket.AF_INET, source or caller.v4, mac, [b"forged"] * 5)
    assert drops(lab, reason) - before == 5


def first_to_arrive(lab: Lab, caller: Inside, family: int, *, source: str, mac: str | None) -> bytes:
    """Send a forged and then an honest datagram to a pod of the same node; return what it receives first."""
    with lab.pod(objects.NEAR_DNS).socket(family, socket.SOCK_DGRAM) as listener:
        listener.settimeout(3)
        listener.bind(("", PORT))
        send(lab, caller, family, source, mac, [b"forged"])
        send(lab, caller, family, caller.of(family), None, [b"honest"])
        return listener.recv(100)


def send(lab: Lab, caller: Inside, family: int, source: str, mac: str | None, payloads: list[bytes]) -> None:
    """Put datagrams on the caller's wire as they are."""
    plan = lab.plan.pod(caller.name)
    assert isinstance(plan, PodPlan)
    network = IPv6 if family == socket.AF_INET6 else IP
    with caller.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for payload in payloads:
            ethernet = Ether(src=mac or plan.mac, dst=plan.host_mac)
            target = lab.pod(objects.NEAR_DNS).of(family)
            wire.send(bytes(ethernet / network(src=source, dst=target) / UDP(sport=5000, dport=PORT) / payload))


def drops(lab: Lab, reason: DropReason) -> int:
    """Return how many packets from pods of node-a were dropped for a reason."""
    with pins.opened(lab.pins("node-a")) as tables:
        value = tables["drops"].get(struct.pack("=I", Hook.FROM_POD * abi.DROP_MAX + reason)) or b""
    size = abi.Counter.size()
    return sum(abi.Counter.unpack(value[start : start + size]).packets for start in range(0, len(value), size))
