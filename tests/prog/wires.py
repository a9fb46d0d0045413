"""A node with the programs on real interfaces, pods behind it, and hosts around it: namespaces, veths and sockets.

Everything is filled in by hand, no agent runs. ``node`` has the pods ``alice``, on a wire made for us, and ``bob``, on
a bridge as another CNI plugin makes it; ``peer`` is the other node, with the backend ``carol``; ``client`` is outside.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.datapath import attach, build, load, loopback
from ebpfnet.lab import namespace
from ebpfnet.maps import kernel
from tests import packets
from tests.prog import loaded

NODE_PORT, SERVICE_PORT, BACKEND_PORT = 30080, 80, 8080
PORTS = (45000, 45999)
ALICE_MAC, BOB_MAC = "02:00:00:00:01:0a", "02:00:00:00:01:0b"
NAMES = ("net", "node", "peer", "client", "alice", "bob")
SETTINGS = (
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.icmp.ratelimit=0",
)
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


class Places(NamedTuple):
    """Addresses of one family."""

    node: str
    peer: str
    client: str
    alice: str
    bob: str
    carol: str
    service: str
    family: int


V4 = Places("192.0.2.1", "192.0.2.2", "198.51.100.9", "10.1.1.10", "10.1.3.11", "10.1.2.12", "10.96.0.1", 2)
V6 = Places("2001:db8::1", "2001:db8::2", "2001:db8:9::9", "fd01::10", "fd03::11", "fd02::12", "fd96::1", 10)

BATCHES = {
    "net": """
        link add bridge type bridge mcast_snooping 0 forward_delay 0
        link set bridge up
        link add node type veth peer name uplink netns {node}
        link add peer type veth peer name uplink netns {peer}
        link add client type veth peer name uplink netns {client}
        link set node up master bridge
        link set peer up master bridge
        link set client up master bridge""",
    # The client is behind the peer, as behind a router.
    "client": """
        link set lo up
        link set uplink up
        addr add 198.51.100.9/24 dev uplink
        addr add 2001:db8:9::9/64 dev uplink nodad
        route add 192.0.2.0/24 via 198.51.100.1
        route add 2001:db8::/64 via 2001:db8:9::1""",
    "peer": """
        link set lo up
        link set uplink up
        addr add 192.0.2.2/24 dev uplink
        addr add 198.51.100.1/24 dev uplink
        addr add 10.1.2.12/32 dev lo
        addr add 2001:db8::2/64 dev uplink nodad
        addr add 2001:db8:9::1/64 dev uplink nodad
        addr add fd02::12/128 dev lo nodad
        route add 10.1.0.0/16 via 192.0.2.1
        route add fd00::/8 via 2001:db8::1""",
    "node": """
        link set lo up
        link set uplink up
        addr add 192.0.2.1/24 dev uplink
        addr add 2001:db8::1/64 dev uplink nodad
        route add default via 192.0.2.2
        route add default via 2001:db8::2
        link add alice type veth peer name eth0 netns {alice} address 02:00:00:00:01:0a
        link set alice up
        route add 10.1.1.10/32 dev alice
        route add fd01::10/128 dev alice
        neigh add 10.1.1.10 lladdr 02:00:00:00:01:0a dev alice nud permanent
        neigh add fd01::10 lladdr 02:00:00:00:01:0a dev alice nud permanent
        link add cni0 type bridge mcast_snooping 0 forward_delay 0
        link set cni0 up
        addr add 10.1.3.1/24 dev cni0
        addr add fd03::1/64 dev cni0 nodad
        link add bob type veth peer name eth0 netns {bob} address 02:00:00:00:01:0b
        link set bob up master cni0""",
    "alice": """
        link set lo up
        link set eth0 up
        addr add 10.1.1.10/32 dev eth0
        addr add fd01::10/128 dev eth0 nodad
        route add 169.254.1.1/32 dev eth0
        neigh add 169.254.1.1 lladdr {alice_gateway} dev eth0 nud permanent
        neigh add fe80::1 lladdr {alice_gateway} dev eth0 nud permanent
        route add default via 169.254.1.1
        route add default via fe80::1 dev eth0""",
    "bob": """
        link set lo up
        link set eth0 up
        addr add 10.1.3.11/24 dev eth0
        addr add fd03::11/64 dev eth0 nodad
        route add default via 10.1.3.1
        route add default via fd03::1""",
}


class Heard(NamedTuple):
    """Who a backend says its client is, and what came back."""

    client: str
    port: int
    data: bytes


@contextmanager
def opened(compiled: build.Object, sizes: Mapping[str, int], backends: Iterable[str]) -> Iterator[Wires]:
    """Build everything, with servers of TCP and UDP on these backends."""
    with loaded.opened(compiled, sizes) as datapath:
        made = Wires(datapath.programs, datapath.tables)
        try:
            made.up()
            for places in (V4, V6):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    for backend in backends:
                        made.serve(places, kind, backend)
            yield made
        finally:
            made.down()


class Wires:
    """The namespaces, with programs and tables."""

    def __init__(self, programs: dict[str, load.Program], tables: dict[str, kernel.KernelTable]) -> None:
        self.programs, self.tables = programs, tables
        self._open: list[socket.socket] = []

    def name(self, short: str) -> str:
        return f"t{os.getpid()}-w-{short}"

    def inside(self, short: str, function: Callable[[], Any]) -> Any:
        return namespace.run(self.name(short), function)

    def command(self, short: str, *words: str, text: str | None = None) -> str:
        def call() -> str:
            done = subprocess.run(words, input=text, text=True, capture_output=True, check=False)
            assert done.returncode == 0, (words, done.stderr)
            return done.stdout

        found: str = self.inside(short, call)
        return found

    def up(self) -> None:
        for short in NAMES:
            namespace.create(self.name(short))
            more = FORWARDING if short in {"node", "peer"} else ()
            self.command(short, "sysctl", "-qw", *SETTINGS, *more)
        names = {short: self.name(short) for short in NAMES}
        for short in ("net", "client", "peer", "node", "bob", "alice"):
            names["alice_gateway"] = "02:00:00:00:01:01" if short != "alice" else self._mac("node", "alice")
            lines = BATCHES[short].format(**names)
            self.command(short, "ip", "-batch", "-", text="\n".join(map(str.strip, lines.splitlines())))
        self.inside("node", self._attach)
        self._furnish()

    def down(self) -> None:
        for each in self._open:
            each.close()
        for short in NAMES:
            namespace.remove(self.name(short))

    def _mac(self, short: str, link: str) -> str:
        words = self.command(short, "ip", "-o", "link", "show", link).split()
        return words[words.index("link/ether") + 1]

    def _ifindex(self, link: str) -> int:
        return int(self.inside("node", lambda: socket.if_nametoindex(link)))

    def _attach(self) -> None:
        def on(link: str, *names: str) -> None:
            attach.attach(socket.if_nametoindex(link), [self.programs[name] for name in names])

        on("uplink", "from_network", "to_network_beside")
        on("alice", "from_pod", "to_pod")
        on("bob", "from_pod_beside", "to_pod_beside")
        on("lo", "from_host")
        for setting, value in loopback.WANTED.items():
            (loopback.FOLDER / setting).write_text(value)

    def _furnish(self) -> None:
        mac = {name: bytes.fromhex(text.replace(":", "")) for name, text in (("alice", ALICE_MAC), ("bob", BOB_MAC))}
        cni = self._ifindex("cni0")
        wires = {
            "alice": abi.Wire(self._ifindex("alice"), mac["alice"]),
            "bob": abi.Wire(self._ifindex("bob"), mac["bob"], cni),
        }
        for places in (V4, V6):
            for pod, wire in wires.items():
                self.tables["pods"].put(packets.raw(getattr(places, pod)), abi.Pod(wire, 1).pack())
            self.mark_own(places)
        node = abi.Node(packets.raw(V4.node), packets.raw(V6.node), *PORTS)
        self.tables["node"].put((0).to_bytes(4, "little"), node.pack())

    def mark_own(self, places: Places) -> None:
        """Say which addresses are the node's, and which the service's."""
        self._mark(places.node, abi.Mark.OWN | abi.Mark.NODEPORTS)
        self._mark("10.1.3.1" if places is V4 else "fd03::1", abi.Mark.OWN)
        self._mark(places.service, abi.Mark.CLUSTER_IP)

    def _mark(self, address: str, marks: int) -> None:
        frontend, service = abi.Frontend(packets.raw(address), 0, 0), abi.Service(0, 0, marks=marks)
        self.tables["services"].put(frontend.pack(), service.pack())

    def lead(self, places: Places, protocol: int, backend: str | None, port: int = BACKEND_PORT) -> None:
        """Let the service lead to one backend, or to nobody."""
        for key in [key for key, _ in self.tables["flows"].items()]:
            self.tables["flows"].delete(key)
        identity = 10 * places.family + protocol
        found = [] if backend is None else [(getattr(places, backend), port)]
        self.tables["sets"].put(identity.to_bytes(8, "little"), abi.Set(1, len(found)).pack())
        for index, (address, backend_port) in enumerate(found):
            value = abi.Backend(packets.raw(address), backend_port).pack()
            self.tables["slots"].put(abi.Slot(identity, 1, index).pack(), value)
        anywhere = "0.0.0.0" if places is V4 else "::"
        for address, front in ((places.service, SERVICE_PORT), (anywhere, NODE_PORT)):
            frontend = abi.Frontend(packets.raw(address), front, protocol)
            self.tables["services"].put(frontend.pack(), abi.Service(identity, identity).pack())

    def socket(self, short: str, places: Places, kind: int) -> socket.socket:
        made: socket.socket = self.inside(short, lambda: socket.socket(places.family, kind))
        made.settimeout(20)
        self._open.append(made)
        return made

    def serve(self, places: Places, kind: int, backend: str) -> None:
        """Answer whoever calls a backend with who that is, and what it said."""
        where = {"carol": "peer"}.get(backend, backend)
        listener = self.socket(where, places, kind)
        listener.settimeout(None)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((getattr(places, backend), BACKEND_PORT))
        if kind == socket.SOCK_STREAM:
            listener.listen()
        work = _answer_streams if kind == socket.SOCK_STREAM else _answer_datagrams
        threading.Thread(target=work, args=(listener,), daemon=True).start()

    def ask(
        self, short: str, places: Places, kind: int, to: tuple[str, int], data: bytes = b"hello", sport: int = 0
    ) -> Heard:
        """Send data to an address and return what its backend heard."""
        with self.socket(short, places, kind) as asking:
            if sport:
                asking.bind((getattr(places, short), sport))
            asking.connect(to)
            if kind == socket.SOCK_DGRAM:
                asking.send(data)
                return _heard(asking.recv(65535))
            return _heard(_exchange(asking, data))


def _heard(raw: bytes) -> Heard:
    head, _, data = raw.partition(b"\n")
    address, port = head.decode().split()
    return Heard(address, int(port), data)


def _exchange(asking: socket.socket, data: bytes) -> bytes:
    def send() -> None:
        asking.sendall(data)
        asking.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    parts = []
    while part := asking.recv(1 << 16):
        parts.append(part)
    sender.join()
    return b"".join(parts)


def _answer_streams(listener: socket.socket) -> None:
    def one(connection: socket.socket, peer: Any) -> None:
        with connection:
            connection.sendall(f"{peer[0]} {peer[1]}\n".encode())
            while part := connection.recv(1 << 16):
                connection.sendall(part)

    while True:
        try:
            connection, peer = listener.accept()
        except OSError:
            return
        threading.Thread(target=one, args=(connection, peer), daemon=True).start()


def _answer_datagrams(listener: socket.socket) -> None:
    while True:
        try:
            data, peer = listener.recvfrom(65535)
            listener.sendto(f"{peer[0]} {peer[1]}\n".encode() + data, peer)
        except OSError:
            return
