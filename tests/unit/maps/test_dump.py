"""What a table looks like to people."""

from __future__ import annotations

import ipaddress

from ebpfnet import abi
from ebpfnet.abi import Backend, Frontend, Netns, Protocol, Socket
from ebpfnet.maps.dump import rows
from ebpfnet.maps.memory import MemoryTable

VIP, POD = (abi.pack_address(ipaddress.ip_address(each)) for each in ("10.96.0.1", "fd00::1"))


def test_sockets():
    tables = {name: MemoryTable(abi.TABLES[name]) for name in ("names", "sockets", "namespaces")}
    tables["names"].put((5).to_bytes(8, "little"), abi.pack_name("default/web:http/TCP"))
    asked = Frontend(VIP, 80, Protocol.TCP)
    tables["sockets"].put((7).to_bytes(8, "little"), Socket(5, 3, asked, Backend(POD, 8080)).pack())
    tables["sockets"].put((8).to_bytes(8, "little"), Socket(0, 3, asked, Backend(bytes(16), 0)).pack())
    assert list(rows(tables, "sockets")) == [
        "7 namespace=3 10.96.0.1:80 -> [fd00::1]:8080 service=default/web:http/TCP",
        "8 namespace=3 10.96.0.1:80 left to its packets",
    ]


def test_namespaces():
    tables = {name: MemoryTable(abi.TABLES[name]) for name in ("names", "sockets", "namespaces")}
    tables["namespaces"].put(Netns(1, 0).pack(), abi.V4_PREFIX + bytes(4))
    tables["namespaces"].put(Netns(1, 1).pack(), bytes(16))
    tables["namespaces"].put(Netns(9, 1).pack(), POD)
    assert list(rows(tables, "namespaces")) == ["1 -> this node", "1 -> this node", "9 -> fd00::1"]
