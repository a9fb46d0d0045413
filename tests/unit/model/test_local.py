"""Ready endpoints of this node, by service and family."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from ebpfnet import abi
from ebpfnet.model import endpoints
from ebpfnet.model.facts import EndpointSlice, Kind, Ref, SlicePort
from ebpfnet.model.local import LocalReady

HERE, THERE = "node-a", "node-b"
READY, NOT_READY, LEAVING = 3, 0, 6
WEB = Ref(Kind.SERVICE, "default", "web")


def piece(name: str, *rows: tuple[str, int, str], ports: int = 1) -> EndpointSlice:
    run = b"".join(endpoints.pack(abi.pack_address(ipaddress.ip_address(text)), state) for text, state, _ in rows)
    return EndpointSlice(
        Ref(Kind.ENDPOINT_SLICE, "default", name),
        "web",
        any(":" in text for text, _, _ in rows),
        tuple(SlicePort(f"p{number}", 6, 80 + number) for number in range(ports)),
        run,
        nodes=tuple(node for _, _, node in rows),
    )


def test_ready_ones_of_this_node_count():
    local = LocalReady(HERE)
    rows = [("10.0.0.1", READY, HERE), ("10.0.0.2", NOT_READY, HERE), ("10.0.0.3", LEAVING, HERE)]
    assert local.set(piece("a", *rows, ("10.0.0.4", READY, THERE)))
    assert local.count(WEB, ipv6=False) == 1
    assert local.count(WEB, ipv6=True) == 0


def test_an_address_counts_once_however_many_ports_and_slices_it_has():
    local = LocalReady(HERE)
    local.set(piece("a", ("10.0.0.1", READY, HERE), ports=2))
    local.set(piece("b", ("10.0.0.1", READY, HERE), ("10.0.0.2", READY, HERE)))
    local.set(piece("v6", ("fd00::1", READY, HERE)))
    assert (local.count(WEB, ipv6=False), local.count(WEB, ipv6=True)) == (2, 1)


def test_slices_change_and_go():
    local = LocalReady(HERE)
    first = piece("a", ("10.0.0.1", READY, HERE), ("10.0.0.2", READY, HERE))
    local.set(first)
    assert not local.set(first)
    assert local.set(piece("a", ("10.0.0.1", READY, HERE)))
    assert local.count(WEB, ipv6=False) == 1
    assert local.set(replace(first, service="other"))
    assert local.count(WEB, ipv6=False) == 0
    assert local.drop(first.ref)
    assert not local.drop(first.ref)
    assert local.count(Ref(Kind.SERVICE, "default", "other"), ipv6=False) == 0


def test_without_ports_or_nodes_there_is_nothing():
    local = LocalReady(HERE)
    assert not local.set(piece("a", ("10.0.0.1", READY, HERE), ports=0))
    assert not local.set(replace(piece("b", ("10.0.0.1", READY, HERE)), nodes=()))
