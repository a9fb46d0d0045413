"""A node with two pods, as a CNI plugin would wire them: a veth each, a /32 route each, no bridge."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from tests.bench.namespace import Namespace

GATEWAY = "169.254.1.1"


@dataclass(frozen=True, slots=True)
class Wire:
    """One pod: its namespace, addresses, and both ends of its veth (``host`` is the name in the node)."""

    pod: Namespace
    addresses: tuple[IPv4Address, ...]
    host: str
    mac: str
    host_mac: str
    ifindex: int


class Pair:
    """A node, a client pod and a server pod; the server has two addresses, so that services have two endpoints."""

    def __init__(self) -> None:
        self.node = Namespace()
        for name, value in {
            "ipv4.ip_forward": 1,
            "ipv4.conf.all.rp_filter": 0,
            "ipv4.conf.default.rp_filter": 0,
        }.items():
            self.node.set(name, value)
        self.client = self._wire("client", 1, ("10.200.0.1",))
        self.server = self._wire("server", 2, ("10.200.1.1", "10.200.1.2"))

    def _wire(self, host: str, number: int, addresses: tuple[str, ...]) -> Wire:
        pod = Namespace()
        pod.set("ipv4.tcp_congestion_control", "reno")  # the machine's choice may pace with timers
        mac, host_mac = f"02:00:00:00:01:{number:02x}", f"02:00:00:00:02:{number:02x}"
        peer = f"eth0 address {mac} netns /proc/self/fd/{pod.fd}"
        node = [f"link add {host} address {host_mac} type veth peer name {peer}", f"link set {host} up"]
        inside = ["link set eth0 up"]
        for address in addresses:
            node.append(f"route add {address}/32 dev {host}")
            node.append(f"neigh add {address} lladdr {mac} dev {host} nud permanent")
            inside.append(f"addr add {address}/32 dev eth0")
        inside.append(f"neigh add {GATEWAY} lladdr {host_mac} dev eth0 nud permanent")
        inside.append(f"route add default via {GATEWAY} dev eth0 onlink")
        self.node.call(["ip", "-batch", "-"], "\n".join(node), pass_fds=(pod.fd,))
        pod.call(["ip", "-batch", "-"], "\n".join(inside))
        with self.node.entered():
            ifindex = socket.if_nametoindex(host)
        return Wire(pod, tuple(map(IPv4Address, addresses)), host, mac, host_mac, ifindex)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for namespace in (self.client.pod, self.server.pod, self.node):
            namespace.close()
