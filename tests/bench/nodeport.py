"""Packets per second from a client outside, through a NodePort, to a backend on another node.

Every side is a chain of three namespaces: client, node, backend. The node has 1,000 services, and for the one that is
called it translates both addresses: destination to the backend, source to itself. A stream of datagrams from one
socket goes one way; what arrives at the backend is counted there, and ends: nobody has that address. Sender, node and
backend share one CPU, so the rate is one over the time of the whole way: `routed` is the same way without translation,
the ceiling.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.bench import ebpf, iptables
from tests.bench.figures import Figure, against
from tests.bench.namespace import Namespace
from tests.bench.services import ENDPOINT_PORT, Service, services

ROUNDS = 15
MILLISECONDS = 300
COUNT = 1_000
NODE_PORT = 30_080
LEAST = 1.5
CLIENT, NODE_OUTSIDE = IPv4Address("192.168.1.2"), IPv4Address("192.168.1.1")
NODE_INSIDE, BACKEND_NODE = IPv4Address("192.168.2.1"), IPv4Address("192.168.2.2")
BACKEND = IPv4Address("10.201.0.1")


class Chain:
    """Client, node and backend; ``fill`` puts services into the node."""

    def __init__(self) -> None:
        self.client, self.node, self.backend = Namespace(), Namespace(), Namespace()
        self.node.set("ipv4.ip_forward", 1)
        _plug(self.client, self.node, "outside", CLIENT, NODE_OUTSIDE, 1)
        _plug(self.backend, self.node, "inside", BACKEND_NODE, NODE_INSIDE, 2)
        # One by one onto the wire: a train would pass the node as one packet.
        self.client.call(["ip", "link", "set", "eth0", "gso_max_segs", "1"])
        self.client.call(["ip", "route", "add", "default", "via", str(NODE_OUTSIDE)])
        self.node.call(["ip", "route", "add", f"{BACKEND}/32", "via", str(BACKEND_NODE)])

    def uplinks(self) -> list[int]:
        """Return the node's two interfaces."""
        with self.node.entered():
            return [socket.if_nametoindex(name) for name in ("outside", "inside")]

    def arrived(self) -> int:
        """Return how many packets have reached the backend."""
        shown = json.loads(self.backend.call(["ip", "-j", "-s", "link", "show", "dev", "eth0"]))
        return int(shown[0]["stats64"]["rx"]["packets"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for namespace in (self.client, self.backend, self.node):
            namespace.close()


def _plug(end: Namespace, node: Namespace, name: str, address: IPv4Address, gateway: IPv4Address, number: int) -> None:
    """Make a veth between an end and the node, with addresses and neighbours set for good."""
    mac, node_mac = f"02:00:00:00:03:{number:02x}", f"02:00:00:00:04:{number:02x}"
    peer = f"eth0 address {mac} netns /proc/self/fd/{end.fd}"
    lines = [
        f"link add {name} address {node_mac} type veth peer name {peer}",
        f"link set {name} up",
        f"addr add {gateway}/24 dev {name}",
        f"neigh add {address} lladdr {mac} dev {name} nud permanent",
    ]
    node.call(["ip", "-batch", "-"], "\n".join(lines), pass_fds=(end.fd,))
    lines = [
        "link set eth0 up",
        f"addr add {address}/24 dev eth0",
        f"neigh add {gateway} lladdr {node_mac} dev eth0 nud permanent",
    ]
    end.call(["ip", "-batch", "-"], "\n".join(lines))


class Side(NamedTuple):
    """A chain, and where its client sends to."""

    name: str
    chain: Chain
    address: IPv4Address
    port: int


Fill = Callable[[Chain, Sequence[Service]], None]


def _ours(chain: Chain, offered: Sequence[Service]) -> None:
    ebpf.attach_to_uplinks(chain.node, chain.uplinks(), NODE_OUTSIDE, offered)


def _theirs(chain: Chain, offered: Sequence[Service]) -> None:
    iptables.load(chain.node, offered)


def _offered() -> list[Service]:
    """Return the services, each with a NodePort of its own; the last is called."""
    plain = services(COUNT, (BACKEND,))
    return [
        each._replace(protocol="udp", node_port=NODE_PORT + COUNT - 1 - number) for number, each in enumerate(plain)
    ]


def _sides(stack: contextlib.ExitStack) -> Iterator[Side]:
    yield Side("routed", stack.enter_context(Chain()), BACKEND, ENDPOINT_PORT)
    fills: dict[str, Fill] = {"ebpfnet": _ours, "iptables": _theirs}
    for name, fill in fills.items():
        chain = stack.enter_context(Chain())
        fill(chain, _offered())
        yield Side(name, chain, NODE_OUTSIDE, NODE_PORT)


def _compile() -> Path:
    program = Path("build/bench/flood")
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, Path(__file__).with_name("flood.c")], check=True)
    return program


def _sample(side: Side, program: Path) -> float:
    before = side.chain.arrived()
    cpu = max(os.sched_getaffinity(0))
    told = json.loads(
        side.chain.client.call([str(program), str(side.address), str(side.port), str(cpu), str(MILLISECONDS)])
    )
    arrived = side.chain.arrived() - before
    if arrived < told["sent"] * 0.99:
        raise RuntimeError(f"{side.name}: {arrived:,} of {told['sent']:,} datagrams arrived")
    return float(arrived / told["seconds"])


def run() -> list[Figure]:
    """Build every side, run the rounds."""
    with contextlib.ExitStack() as stack:
        program = _compile()
        sides = list(_sides(stack))
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(ROUNDS):
            turn = number % len(sides)
            for side in sides[turn:] + sides[:turn]:
                rates[side.name].append(_sample(side, program))
    title = f"NodePort to another node, {COUNT:,} services"
    return [
        against(f"{title}: ebpfnet", "packets/s", rates["ebpfnet"], "iptables", rates["iptables"], LEAST),
        against(f"{title}: ebpfnet", "packets/s", rates["ebpfnet"], "routed", rates["routed"]),
        against(f"{title}: iptables", "packets/s", rates["iptables"], "routed", rates["routed"]),
    ]
