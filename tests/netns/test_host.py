"""What a node's interfaces and sockets say of it, as they change."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from ebpfnet.datapath.netlink import SOCK_DIAG, Reader
from ebpfnet.hosting import SYSCTL, Hosting, HostSettings, observe
from ebpfnet.lab import namespace
from ebpfnet.model.facts import Kind, Node, Ref, Upsert
from ebpfnet.model.host import Host

SECONDS = 60
NODE = Node(Ref(Kind.NODE, "", "n"), (ip_address("192.0.2.1"), ip_address("fd00::1")), ())


def ip(*words: str) -> None:
    subprocess.run(["ip", "-n", name(), *words], check=True)


def link(device: str) -> None:
    ip("link", "add", device, "type", "veth", "peer", "name", f"{device}-end")
    ip("link", "set", device, "up")


def name() -> str:
    return f"t{os.getpid()}-host"


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    namespace.create(name())
    ip("link", "set", "lo", "up")
    link("up0")
    yield
    namespace.remove(name())


class Followed:
    """What a node is to services, followed in the namespace."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self.lock = threading.Lock()
        self.hosting = Hosting(HostSettings(), "n", lambda: [socket.if_nametoindex("up0")], self.lock, lambda: None)

    def wait(self, condition: Callable[[Host], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not (self.hosts and condition(self.hosts[-1])):
            assert time.monotonic() < deadline, self.hosts[-1:]
            time.sleep(0.01)


@pytest.fixture
def followed() -> Iterator[Followed]:
    found, stop = Followed(), threading.Event()
    namespace.run(name(), lambda: found.hosting.begin(found.hosts.append))
    thread = threading.Thread(target=namespace.run, args=(name(), lambda: found.hosting.follow(stop, 3600)))
    thread.start()
    yield found
    stop.set()
    thread.join()


def test_addresses_are_followed(followed: Followed):
    with followed.lock:
        followed.hosting.learn([Upsert(NODE)])
    ip("addr", "add", "192.0.2.1/24", "dev", "up0")
    ip("addr", "add", "192.0.2.7/24", "dev", "up0")
    ip("addr", "add", "fd00::1/64", "dev", "up0")
    both = (ip_address("192.0.2.1"), ip_address("fd00::1"))
    followed.wait(lambda host: host.nodeport_addresses == both and host.sources == both)
    assert followed.hosts[-1].addresses == (both[0], ip_address("192.0.2.7"), both[1])
    ip("addr", "del", "192.0.2.1/24", "dev", "up0")
    followed.wait(lambda host: host.nodeport_addresses == both[1:] and ip_address("192.0.2.1") not in host.addresses)


def test_services_addresses_on_kube_proxys_interface_are_not_the_nodes(followed: Followed):
    link("kube-ipvs0")
    ip("addr", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    ip("addr", "add", "192.0.2.1/24", "dev", "up0")
    followed.wait(lambda host: host.addresses == (ip_address("192.0.2.1"),))


def test_ports_of_the_namespace_are_seen():
    def inside() -> tuple[object, ...]:
        (SYSCTL / "ip_local_port_range").write_text("20000 29999")
        (SYSCTL / "ip_local_reserved_ports").write_text("1024-9999,15000")
        with socket.socket() as listener, Reader() as routes, Reader(SOCK_DIAG) as diag:
            listener.bind(("", 30123))
            listener.listen()
            return observe(routes, diag, lambda: [2], (30000, 32767))

    seen = namespace.run(name(), inside)
    assert seen[2:] == (((6, None, 30123),), (20000, 29999), ((1024, 9999), (15000, 15000)))
