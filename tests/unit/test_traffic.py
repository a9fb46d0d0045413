"""What metrics say of services: so many names, and nothing lost of the others."""

from __future__ import annotations

import pytest

from ebpfnet import abi
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table
from ebpfnet.operate.snapshot import Decided, Traffic
from ebpfnet.operate.tally import OTHER
from ebpfnet.traffic import decided, traffic

USAGE = abi.TABLES["usage"]._replace(value_size=2 * abi.Usage.size())  # two processors
NAMES = {1: "a/web:http", 2: "a/web:http#local", 3: "b/dns:dns", 4: "c/quiet:x"}


@pytest.fixture
def tables() -> dict[str, Table]:
    """Return tables with two backends of a, one of its Local set, one of b, one of c and one of a set that is gone."""
    found: dict[str, Table] = {"usage": MemoryTable(USAGE), "names": MemoryTable(abi.TABLES["names"])}
    for set_id, name in NAMES.items():
        found["names"].put(set_id.to_bytes(8, "little"), abi.pack_name(name))
    for number, (set_id, octets) in enumerate([(1, 100), (1, 50), (2, 25), (3, 60), (4, 1), (9, 1000)]):
        backend = abi.Backend(bytes(15) + bytes([number]), 80)
        cpus = abi.Usage(1, 2, octets).pack() + abi.Usage(0, 1, 0).pack()
        found["usage"].put(abi.Member(set_id, backend).pack(), cpus)
    return found


def test_sets_of_a_service_and_all_processors_are_added_up(tables: dict[str, Table]):
    assert next(iter(traffic(tables, 5))) == Traffic("a/web:http", 3, 9, 175)


@pytest.mark.parametrize(
    ("limit", "names"),
    [(5, ["a/web:http", "b/dns:dns", "c/quiet:x", OTHER]), (1, ["a/web:http", OTHER]), (0, [OTHER])],
)
def test_as_many_names_as_are_asked_for(tables: dict[str, Table], limit: int, names: list[str]):
    assert [each.service for each in traffic(tables, limit)] == names


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_nothing_is_lost(tables: dict[str, Table], limit: int):
    shown = list(traffic(tables, limit))
    assert sum(each.bytes for each in shown) == 1236
    assert sum(each.connections for each in shown) == 6


def test_nothing_counted_is_no_row(tables: dict[str, Table]):
    tables["usage"] = MemoryTable(USAGE)
    assert list(traffic(tables, 5)) == []


HITS = abi.TABLES["rule_hits"]._replace(value_size=2 * abi.Hits.size())


def test_what_policies_decided_with_the_rest_in_one_row():
    tables: dict[str, Table] = {"rule_hits": MemoryTable(HITS), "names": MemoryTable(abi.TABLES["names"])}
    for rule, (name, *counts) in enumerate(
        [
            ("NetworkPolicy a/web, ingress[0]", 5, 0, 0),
            ("NetworkPolicy a/web, egress[1]", 2, 0, 1),
            ("isolated for ingress by NetworkPolicy a/deny", 0, 3, 0),
            ("", 0, 7, 0),
        ],
        1,
    ):
        if name:
            tables["names"].put(rule.to_bytes(8, "little"), abi.pack_name(name))
        cpus = abi.Hits(*counts).pack() + abi.Hits(0, 0, 1).pack()
        tables["rule_hits"].put(rule.to_bytes(8, "little"), cpus)
    web, deny = "NetworkPolicy a/web", "NetworkPolicy a/deny"
    assert list(decided(tables, 5))[:3] == [
        Decided(web, "allowed", 7),
        Decided(web, "denied", 0),
        Decided(web, "audited", 3),
    ]
    assert [each for each in decided(tables, 1) if each.policy != web] == [
        Decided(OTHER, "allowed", 0),
        Decided(OTHER, "denied", 3),
        Decided(OTHER, "audited", 1),
    ]
    assert Decided(deny, "denied", 3) in decided(tables, 5)
