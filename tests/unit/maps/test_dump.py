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


def test_routes_that_are_kept():
    tables = {name: MemoryTable(abi.TABLES[name]) for name in ("names", "routes")}
    kept = abi.Route(POD, POD[:-1] + bytes([9]), 5, 11, 13, 1500, 0, bytes(5) + b"\x01", bytes(6))
    tables["routes"].put(bytes(4), kept.pack())
    tables["routes"].put((1).to_bytes(4, "little"), bytes(abi.Route.size()))
    row = "cpu=0 fd00::1 -> fd00::9 tos=0 from=11 ifindex=13 mac=00:00:00:00:00:01 mtu=1500 asked_ns=5"
    assert list(rows(tables, "routes")) == [row]


def put_policies() -> dict[str, MemoryTable]:
    names = ("names", "peers", "peer_blocks", "rules", "rule_ports", "rule_hits", "generations")
    tables = {name: MemoryTable(abi.TABLES[name]) for name in names}
    for identity, text in ((7, "NetworkPolicy default/web"), (8, "NetworkPolicy default/web, ingress[1]")):
        tables["names"].put(identity.to_bytes(8, "little"), abi.pack_name(text))
    tables["peers"].put(POD, (3).to_bytes(4, "little"))
    block = abi.Block(96 + 8, abi.pack_address(ipaddress.ip_address("10.0.0.0")))
    tables["peer_blocks"].put(block.pack(), (4).to_bytes(4, "little"))
    everybody, some = (abi.RuleKey(7, peers, abi.Direction.INGRESS).pack() for peers in (0, 3))
    tables["rules"].put(everybody, abi.Rule(9, flags=abi.RuleFlag.GRACEFUL).pack())
    tables["rules"].put(some, abi.Rule(0, 5, 1 << 16 | 1 << 15, abi.Verdict.ALLOW).pack())
    rule = abi.Rule(8, 0, 0, abi.Verdict.AUDIT).pack()
    tables["rule_ports"].put(abi.PortRange(5, 80, 16, Protocol.TCP).pack(), rule)
    tables["rule_ports"].put(abi.PortRange(5, 82, 15, Protocol.UDP).pack(), rule)
    tables["rule_hits"].put((8).to_bytes(8, "little"), abi.Hits(1, 2, 3).pack())
    tables["generations"].put((12).to_bytes(4, "little"), (2).to_bytes(4, "little"))
    return tables


def test_policies():
    tables = put_policies()
    group, rule = '"NetworkPolicy default/web"', '"NetworkPolicy default/web, ingress[1]"'
    assert {name: list(rows(tables, name)) for name in tables if name != "names"} == {
        "peers": ["fd00::1 class=3"],
        "peer_blocks": ["10.0.0.0/8 class=4"],
        "rules": [
            f"{group} INGRESS everybody DENY GRACEFUL by=0000000000000009",
            f"{group} INGRESS class=3 ALLOW by=- ports=0000000000000005 lengths=15,16",
        ],
        "rule_ports": [
            f"ports=0000000000000005 TCP 80 AUDIT by={rule}",
            f"ports=0000000000000005 UDP 82-83 AUDIT by={rule}",
        ],
        "rule_hits": [f"{rule} allowed=1 denied=2 audited=3"],
        "generations": ["ifindex=12 generation=2"],
    }
