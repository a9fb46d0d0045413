"""The services that every side of the `connect` benchmark gets: ours last, behind many that nobody calls."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

FIRST_VIP = IPv4Address("10.96.0.1")
FIRST_ENDPOINT = IPv4Address("10.128.0.1")
SERVICE_PORT = 80
ENDPOINT_PORT = 8080


class Service(NamedTuple):
    """A service with one port, called http: a ClusterIP, and with ``node_port`` a NodePort, too."""

    namespace: str
    name: str
    vip: IPv4Address
    endpoints: tuple[IPv4Address, ...]
    protocol: str = "tcp"
    node_port: int = 0


def services(count: int, endpoints: Sequence[IPv4Address]) -> list[Service]:
    """Return ``count`` services with as many endpoints each as the last one, which is the one that leads anywhere."""
    size = len(endpoints)
    others = [
        Service("bench", f"other-{i}", FIRST_VIP + i, tuple(FIRST_ENDPOINT + i * size + j for j in range(size)))
        for i in range(count - 1)
    ]
    return [*others, Service("bench", "ours", FIRST_VIP + count - 1, tuple(endpoints))]
