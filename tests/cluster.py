"""Model facts, tables and a reconciler for tests, in few words."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.maps import dump
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table
from ebpfnet.model import endpoints
from ebpfnet.model.facts import (
    Change,
    EndpointSlice,
    Hint,
    Kind,
    Node,
    Pod,
    Ref,
    Service,
    ServicePort,
    SlicePort,
    Synced,
)
from ebpfnet.model.host import Host
from ebpfnet.reconcile.reconciler import Reconciler

TCP, UDP, SCTP = abi.Protocol.TCP, abi.Protocol.UDP, abi.Protocol.SCTP
NODE = "node-a"
WRITTEN = (
    *("services", "sets", "slots", "members", "ranges", "blocks", "node", "pods", "names"),
    *("peers", "peer_blocks", "rules", "rule_ports", "generations"),
)


def memory_tables(wrap: Callable[[MemoryTable], Table] | None = None, **sizes: int) -> dict[str, Table]:
    """Return the tables that the reconciler writes, in memory; ``sizes`` are their capacities."""
    tables: dict[str, Table] = {}
    for name in WRITTEN:
        spec = abi.TABLES[name]
        table = MemoryTable(spec._replace(max_entries=sizes.get(name, spec.max_entries)))
        tables[name] = wrap(table) if wrap else table
    return tables


def service(
    name: str, *addresses: str, ports: Iterable[tuple[Any, ...]] = (("http", TCP, 80),), created="", **more: Any
) -> Service:
    """Return a service of namespace default; ``ports`` are (name, protocol, port[, node port]).

    ``more`` are other fields; addresses and blocks in them may be text.
    """
    for field, parse in (
        ("external_ips", ipaddress.ip_address),
        ("load_balancer_ips", ipaddress.ip_address),
        ("source_ranges", ipaddress.ip_network),
    ):
        if more.get(field):
            more[field] = tuple(map(parse, more[field]))
    ips = tuple(ipaddress.ip_address(text) for text in addresses)
    ref = Ref(Kind.SERVICE, "default", name)
    return Service(ref, ips, tuple(ServicePort(*port) for port in ports), created, **more)


def piece(
    owner: str,
    suffix: str,
    ready: Iterable[str],
    not_ready: Iterable[str] = (),
    ports: Iterable[tuple[str, int, int]] = (("http", TCP, 8080),),
    leaving: Iterable[str] = (),
    here: Iterable[str] = (),
    hints: Mapping[str, Hint] | None = None,
    weight: int = 1,
) -> EndpointSlice:
    """Return a slice of a service; the family is that of its addresses (IPv4 when there are none).

    ``leaving`` serve while they terminate; ``here`` names those that are on this node; ``hints`` are by address.
    """
    pairs = [(text, 3) for text in ready] + [(text, 0) for text in not_ready] + [(text, 6) for text in leaving]
    packed = [(abi.pack_address(ipaddress.ip_address(text)), conditions) for text, conditions in pairs]
    ipv6 = any(":" in text for text, _ in pairs)
    run = b"".join(endpoints.pack(*pair) for pair in packed)
    ref = Ref(Kind.ENDPOINT_SLICE, "default", f"{owner}-{suffix}")
    local = set(here)
    nodes = tuple(NODE if text in local else "node-b" for text, _ in pairs) if local else ()
    meant = tuple((hints or {}).get(text, Hint()) for text, _ in pairs) if hints else ()
    return EndpointSlice(ref, owner, ipv6, tuple(SlicePort(*port) for port in ports), run, nodes, meant, weight)


def node(name: str = NODE, zone: str = "", pod_cidrs: Iterable[str] = (), addresses: Iterable[str] = ()) -> Node:
    """Return a node."""
    blocks = tuple(map(ipaddress.ip_network, pod_cidrs))
    return Node(Ref(Kind.NODE, "", name), tuple(map(ipaddress.ip_address, addresses)), blocks, zone=zone)


def host(**fields: Any) -> Host:
    """Return what a node is to services; addresses and blocks may be text, and ``busy`` a list."""
    for field in ("addresses", "nodeport_addresses", "sources"):
        fields[field] = tuple(map(ipaddress.ip_address, fields.get(field, ())))
    for field in ("pod_cidrs", "service_cidrs", "external_ip_cidrs"):
        fields[field] = tuple(map(ipaddress.ip_network, fields.get(field, ())))
    fields["busy"] = frozenset(map(tuple, fields.get("busy", ())))
    return Host(**fields)


def pod(name: str, *addresses: str, node: str = NODE, host_network: bool = False) -> Pod:
    """Return a pod of namespace default."""
    ips = tuple(ipaddress.ip_address(text) for text in addresses)
    return Pod(Ref(Kind.POD, "default", name), node, ips, (), (), host_network)


def wire(number: int) -> abi.Wire:
    """Return a made-up wire."""
    return abi.Wire(number, bytes((2, 0, 0, 0)) + number.to_bytes(2, "big"))


class Clock:
    """A clock that moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    changes: Sequence[Change],
    tables: dict[str, Table] | None = None,
    wires: Mapping[str, abi.Wire] | None = None,
    on: Host | None = None,
) -> list[str]:
    """Return what the tables hold after these changes."""
    tables = tables or memory_tables()
    reconciler = Reconciler(tables, "node-a")
    reconciler.set_host(on or Host())
    reconciler.apply([*changes, Synced()])
    reconciler.set_wires(wires or {})
    return dump.summary(tables)


def unmarked(lines: Iterable[str]) -> list[str]:
    """Leave out what addresses are."""
    return [line for line in lines if not line.startswith("MARK ")]


def settle(reconciler: Reconciler, clock: Clock) -> None:
    """Let time pass until nothing is left to try again."""
    for _ in range(500):
        due = reconciler.next_retry
        if due is None:
            return
        clock.now = max(clock.now, due)
        reconciler.retry()
    pytest.fail("never settled")


def writes(tables: Mapping[str, Any]) -> int:
    """Return how often the tables were written."""
    return sum(table.writes for table in tables.values())
