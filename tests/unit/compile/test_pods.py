"""Which wire is a pod's."""

from __future__ import annotations

import ipaddress

from ebpfnet import abi
from ebpfnet.compile.pods import Wires, compile_pod, owners, wire_of
from tests.cluster import pod, wire

V4, V6 = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")
BESIDE = abi.Wire(9, bytes(6), 1)


def test_by_name_before_addresses():
    assert wire_of(pod("p", str(V4)), Wires({"default/p": wire(5)}, {V4: BESIDE})) == wire(5)


def test_by_any_of_its_addresses():
    assert wire_of(pod("p", str(V4), str(V6)), Wires({}, {V6: BESIDE})) == BESIDE


def test_none_while_its_address_is_behind_no_wire():
    assert wire_of(pod("p", str(V4)), Wires({}, {V6: BESIDE})) is None


def test_never_with_the_hosts_network():
    host = pod("p", str(V4), host_network=True)
    assert wire_of(host, Wires({"default/p": wire(5)}, {V4: BESIDE})) is None


def test_all_addresses_get_the_wire():
    entries = compile_pod(pod("p", str(V4), str(V6)), BESIDE)
    assert [abi.Pod.unpack(entry.value).wire for entry in entries] == [BESIDE, BESIDE]


def test_owners_are_those_with_a_wire():
    assert owners([pod("p", str(V4)), pod("q", "10.0.0.2")], Wires({}, {V4: BESIDE})) == {9: "default/p"}
