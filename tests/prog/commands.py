"""The command line as a process, and tables for it as an agent left them: a service, pods, a connection, its drops."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebpfnet import abi
from ebpfnet.maps import kernel, pins
from ebpfnet.model.facts import Fact, Synced, Upsert
from ebpfnet.model.host import Host
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import TCP, UDP, piece, pod, service, wire

HOST = Host(
    tuple(map(ipaddress.ip_address, ("192.168.0.1", "192.168.9.1"))),
    (ipaddress.ip_address("192.168.0.1"),),
    external_ip_cidrs=(ipaddress.ip_network("198.51.100.0/24"),),
)
DOOR = dataclasses.replace(
    service("door", "10.96.0.2", ports=[("http", TCP, 80, 30080)]),
    external_ips=(ipaddress.ip_address("198.51.100.1"),),
    load_balancer_ips=(ipaddress.ip_address("203.0.113.1"),),
    external_local=True,
    affinity_s=60,
    source_ranges=(ipaddress.ip_network("192.0.2.0/24"),),
)
SMALL = {name: spec._replace(max_entries=min(spec.max_entries, 1024)) for name, spec in abi.TABLES.items()}


def packed(text: str) -> bytes:
    return abi.pack_address(ipaddress.ip_address(text))


@contextmanager
def tables_in(root: Path) -> Iterator[Path]:
    """Pin the tables in a folder, on a bpffs of its own."""
    (root / "bpf").mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", root / "bpf"], check=True)
    tables = pins.create_or_open_all(root / "bpf" / "x", SMALL)
    reconciler = Reconciler(tables, "node-a")
    web = service("web", "10.96.0.1", "fd00:96::1", ports=[("http", TCP, 80), ("dns", UDP, 53)])
    ports = [("http", TCP, 8080), ("dns", UDP, 5353)]
    pieces = [piece("web", "a", ["10.0.0.1", "10.0.0.2"], ports=ports), piece("web", "b", ["fd00::1"], ports=ports)]
    reconciler.set_host(HOST)
    pieces.append(dataclasses.replace(piece("door", "a", ["10.0.0.1", "10.0.1.1"]), nodes=("node-a", "node-b")))
    facts: list[Fact] = [web, DOOR, *pieces, pod("client", "10.0.0.9"), pod("b", "10.0.0.1")]
    reconciler.apply([*map(Upsert, facts)])
    reconciler.set_wires({"default/client": wire(5), "default/b": wire(6)})
    reconciler.apply([Synced()])
    _connection(tables, reconciler)
    yield root
    pins.close_all(tables)
    subprocess.run(["umount", "-l", root / "bpf"], check=True)


def _connection(tables: dict[str, kernel.KernelTable], reconciler: Reconciler) -> None:
    key = abi.Tuple(packed("10.0.0.9"), packed("10.96.0.1"), 40000, 80, TCP)
    to = abi.Tuple(packed("10.0.0.9"), packed("10.0.0.1"), 40000, 8080, TCP)
    found = tables["services"].get(abi.Frontend(packed("10.96.0.1"), 80, TCP).pack())
    assert found is not None
    identity = abi.Service.unpack(found).inside
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    state, flags = abi.FlowState.ESTABLISHED, abi.FlowFlag.NAT
    tables["flows"].put(key.pack(), abi.Flow(to, now, identity, 0, wire(5), wire(6), state, flags, 2).pack())
    _visitor(tables, now)
    reason = abi.DropReason.SPOOFED_MAC
    sample = abi.DropSample(1, now, key, 5, 60, abi.Hook.FROM_POD, reason)
    tables["drop_samples"].put((1).to_bytes(4, "little"), sample.pack())
    counter = abi.Counter(3, 180).pack() + bytes(tables["drops"].value_size - 16)
    tables["drops"].put((abi.Hook.FROM_POD * abi.DROP_MAX + reason).to_bytes(4, "little"), counter)


def _visitor(tables: dict[str, kernel.KernelTable], now: int) -> None:
    """A client outside that the node stands in for, and what went through the service before."""
    node_port = tables["services"].get(abi.Frontend(packed("0.0.0.0"), 30080, TCP).pack())
    assert node_port is not None
    identity = abi.Service.unpack(node_port).inside
    key = abi.Tuple(packed("192.0.2.7"), packed("192.168.0.1"), 5000, 30080, TCP)
    to = abi.Tuple(packed("192.168.0.1"), packed("10.0.1.1"), 1500, 8080, TCP)
    state, flags = abi.FlowState.ESTABLISHED, abi.FlowFlag.NAT
    none = abi.Wire(0, bytes(6))
    forward = abi.Flow(to, now, identity, 300, none, none, state, flags | abi.FlowFlag.GONE, 2, packets=3)
    back = abi.Flow(key.reverse(), now, identity, 200, none, none, state, flags | abi.FlowFlag.REPLY, 2, packets=2)
    tables["flows"].put(key.pack(), forward.pack())
    tables["flows"].put(to.reverse().pack(), back.pack())
    each_cpu = tables["usage"].value_size // abi.Usage.size()
    for address, packets in (("10.0.0.1", 10), ("10.0.1.1", 20)):
        member = abi.Member(identity, abi.Backend(packed(address), 8080))
        usage = [abi.Usage(1, packets, 100 * packets).pack(), *[bytes(abi.Usage.size())] * (each_cpu - 1)]
        tables["usage"].put(member.pack(), b"".join(usage))


def call(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ebpfnet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not (check and done.returncode), done.stderr
    return done


def ask(node: Path, *arguments: str) -> str:
    return call(*arguments, "--pins", str(node / "bpf" / "x"), "--run", str(node)).stdout


def completions(*words: str) -> list[str]:
    """Return what bash is offered for the last word."""
    ask = {"COMP_WORDS": " ".join(["ebpfnet", *words]), "COMP_CWORD": str(len(words)), "PATH": os.environ["PATH"]}
    main = "import sys; sys.argv[0] = 'ebpfnet'; from ebpfnet.cli.main import main; main()"
    environment = {**ask, "_EBPFNET_COMPLETE": "bash_complete"}
    done = subprocess.run([sys.executable, "-c", main], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.split()]
