"""How a pod's namespace becomes known: by the first packet of a connection that asks; and what that changes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ebpfnet import abi
from ebpfnet.abi import FlowFlag
from ebpfnet.datapath import attach, cgroup
from tests import cgroups, packets
from tests.bench.wires import Pair, Wire
from tests.packets import POD_PORT, SERVICE_PORT
from tests.prog.loaded import Datapath
from tests.prog.serving import put_frontend, put_set
from tests.prog.sockets import PATIENCE_S, SET, TCP, bpffs, namespace_cookie

PROGRAMS = {0: ("from_pod", "to_pod"), 1: ("from_pod_beside", "to_pod_beside")}


class Pods(NamedTuple):
    """Two pods of a node, one of them behind a service."""

    datapath: Datapath
    pair: Pair
    client: str
    service: str

    def connect(self) -> tuple[abi.Flow | None, abi.Flow | None, str]:
        """Connect once and be answered; returns the flows to the service and to the backend, and the peer's address."""
        family = socket.AF_INET6 if ":" in self.service else socket.AF_INET
        with self.pair.client.pod.entered():
            made = socket.socket(family, socket.SOCK_STREAM)
        with made as client:
            client.settimeout(PATIENCE_S)
            client.connect((self.service, SERVICE_PORT))
            assert client.recv(5) == b"hello"
            port = client.getsockname()[1]
            to_service = abi.Tuple(packets.raw(self.client), packets.raw(self.service), port, SERVICE_PORT, TCP)
            to_backend = abi.Tuple(packets.raw(self.client), packets.raw(SERVERS[family]), port, POD_PORT, TCP)
            return self.datapath.flow(to_service), self.datapath.flow(to_backend), client.getpeername()[0]

    def known_as(self) -> bytes | None:
        """Return what the client's namespace is known as."""
        with self.pair.client.pod.entered():
            key = abi.Netns(namespace_cookie(), int(":" in self.service))
        return self.datapath.tables["namespaces"].get(key.pack())


ANSWERING = """
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])), family=int(sys.argv[2]))
print(flush=True)
while True:
    listener.accept()[0].send(b"hello")
"""
SERVERS = {socket.AF_INET: "10.200.1.1", socket.AF_INET6: "fd20::2"}


def add_ipv6(pair: Pair, wire: Wire, address: str) -> None:
    pair.node.set("ipv6.conf.all.forwarding", 1)
    node = [f"route add {address}/128 dev {wire.host}", f"neigh add {address} lladdr {wire.mac} dev {wire.host}"]
    pod = [
        f"addr add {address}/128 dev eth0 nodad",
        f"neigh add fe80::1 lladdr {wire.host_mac} dev eth0",
        "route add default via fe80::1 dev eth0 onlink",
    ]
    pair.node.call(["ip", "-6", "-batch", "-"], "\n".join(node))
    wire.pod.call(["ip", "-6", "-batch", "-"], "\n".join(pod))


@pytest.fixture(params=PROGRAMS, ids=["ours", "beside"])
def pods(
    request: pytest.FixtureRequest, datapath: Datapath, ends: packets.Ends, group: Path, tmp_path: Path
) -> Iterator[Pods]:
    """Pods with the programs on their wires and on a cgroup that this process is in."""
    segment: int = request.param
    family = socket.AF_INET6 if ends.ipv6 else socket.AF_INET
    client = "fd20::1" if ends.ipv6 else "10.200.0.1"
    server = SERVERS[family]
    put_set(datapath, SET, [(server, POD_PORT)])
    put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, TCP)
    with Pair() as pair, bpffs(tmp_path / "bpf") as pins, cgroups.inside(group):
        add_ipv6(pair, pair.client, "fd20::1")
        add_ipv6(pair, pair.server, "fd20::2")
        for wire, address in ((pair.client, client), (pair.server, server)):
            held = abi.Wire(wire.ifindex, bytes.fromhex(wire.mac.replace(":", "")), segment)
            datapath.tables["pods"].put(packets.raw(address), abi.Pod(held, 1).pack())
            with pair.node.entered():
                attach.attach(wire.ifindex, [datapath.programs[name] for name in PROGRAMS[segment]])
        cgroup.Shortcut(group, pins).attach(datapath.programs)
        answering = pair.server.pod.start(["python3", "-c", ANSWERING, str(POD_PORT), str(int(family))])
        assert answering.stdout is not None
        answering.stdout.readline()
        yield Pods(datapath, pair, client, ends.service)
        answering.kill()
        answering.communicate()


def test_the_first_connection_makes_the_pod_known(pods: Pods) -> None:
    assert pods.known_as() is None
    to_service, _, peer = pods.connect()
    assert peer == pods.service
    assert to_service is not None
    assert to_service.flags & FlowFlag.NAT
    assert pods.known_as() == packets.raw(pods.client)


def test_later_connections_are_not_translated_and_count_for_the_service(pods: Pods) -> None:
    pods.connect()
    to_service, to_backend, peer = pods.connect()
    assert peer == pods.service
    assert to_service is None
    assert to_backend is not None
    assert not to_backend.flags & FlowFlag.NAT
    assert to_backend.service == SET
