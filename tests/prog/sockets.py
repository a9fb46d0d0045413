"""Real sockets in a namespace with nothing but its loopback device: what has no address here can't be reached, unless
the shortcut does it."""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.datapath import cgroup
from tests import packets
from tests.packets import POD_PORT, SERVICE_PORT
from tests.prog.loaded import Datapath
from tests.prog.serving import put_frontend, put_set

PATIENCE_S = 10
TCP = int(abi.Protocol.TCP)
SET = 4711


class Kind(NamedTuple):
    """A family of sockets, and the addresses that they connect to; ``prefix`` makes IPv4 addresses mapped ones."""

    family: socket.AddressFamily
    service: str
    backends: tuple[str, str]
    client: str
    unspecified: str
    prefix: str = ""

    def spelled(self, address: str) -> str:
        """Return an address as sockets of this kind spell it."""
        return self.prefix + address

    @property
    def ipv6(self) -> bool:
        """Whether the addresses are of IPv6."""
        return ":" in self.service


V4 = Kind(socket.AF_INET, "10.96.0.1", ("10.1.1.11", "10.1.2.12"), "10.1.1.10", "0.0.0.0")
V6 = Kind(socket.AF_INET6, "fd96::1", ("fd01::11", "fd02::12"), "fd01::10", "::")
KINDS = {"v4": V4, "v6": V6, "mapped": V4._replace(family=socket.AF_INET6, prefix="::ffff:")}


class Ground:
    """The tables, and a server on each backend's address."""

    def __init__(self, datapath: Datapath, kind: Kind, listeners: dict[str, socket.socket], pins: Path) -> None:
        self.datapath = datapath
        self.kind = kind
        self.listeners = listeners
        self.pins = pins

    def serve(self, backends: Sequence[str], **service: int) -> None:
        """Have the service lead to these backends."""
        put_set(self.datapath, SET, [(address, POD_PORT) for address in backends])
        self.put(abi.Service(SET, SET, **service))

    def put(self, service: abi.Service, address: str = "", port: int = SERVICE_PORT) -> None:
        """Write a frontend."""
        put_frontend(self.datapath, address or self.kind.service, service, port, TCP)

    def client(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Return a new socket."""
        made = socket.socket(self.kind.family, kind)
        made.settimeout(PATIENCE_S)
        return made

    def connect(self, address: str = "", port: int = SERVICE_PORT) -> socket.socket:
        """Connect to the service, or to another address; raises ``OSError``."""
        client = self.client()
        try:
            client.connect((self.kind.spelled(address or self.kind.service), port))
        except OSError:
            client.close()
            raise
        return client

    def accepted(self) -> str:
        """Return the backend that got the next connection."""
        ready, _, _ = select.select(list(self.listeners.values()), [], [], PATIENCE_S)
        (address,) = (name for name, listener in self.listeners.items() if listener in ready)
        self.listeners[address].accept()[0].close()
        return address

    def reached(self) -> str:
        """Connect to the service and return which backend that was."""
        with self.connect():
            return self.accepted()

    def socket_of(self, client: socket.socket) -> abi.Socket | None:
        """Return what is known of a socket."""
        value = self.datapath.tables["sockets"].get(cookie_of(client))
        return None if value is None else abi.Socket.unpack(value)


def cookie_of(client: socket.socket) -> bytes:
    """Return a socket's cookie, as ``sockets`` has it."""
    return client.getsockopt(socket.SOL_SOCKET, 57, 8)  # SO_COOKIE


def namespace_cookie() -> int:
    """Return the cookie of the namespace that this thread is in."""
    with socket.socket() as any_socket:
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, cgroup.SO_NETNS_COOKIE, 8), "little")


def admit(datapath: Datapath, kind: Kind) -> None:
    """Know this namespace as that of the pod with the client's address."""
    key = abi.Netns(namespace_cookie(), int(kind.ipv6)).pack()
    datapath.tables["namespaces"].put(key, packets.raw(kind.client))


@contextmanager
def bpffs(path: Path) -> Iterator[Path]:
    """Mount a BPF filesystem for the length of a block; yields a folder for pins in it."""
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    try:
        (path / "pins").mkdir()
        yield path / "pins"
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def listening(kind: Kind) -> Iterator[dict[str, socket.socket]]:
    """Give the loopback device the backends' addresses, and listen on each."""
    run: Callable[[str], object] = lambda words: subprocess.run(["ip", *words.split()], check=True)  # noqa: E731
    run("link set lo up")
    with ExitStack() as stack:
        found = {}
        for address in kind.backends:
            run(f"addr add {address}/{128 if kind.ipv6 else 32} dev lo" + (" nodad" if kind.ipv6 else ""))
            family = socket.AF_INET6 if kind.ipv6 else socket.AF_INET
            found[address] = stack.enter_context(socket.create_server((address, POD_PORT), family=family, backlog=64))
        yield found
