"""Real sockets and real packets: who calls a service from where, over every kind of backend."""

import socket
from collections.abc import Iterator

import pytest

from ebpfnet import abi
from ebpfnet.datapath import build
from tests.prog.conftest import SIZES
from tests.prog.wires import NODE_PORT, PORTS, SERVICE_PORT, V4, V6, Places, Wires, opened

Kind = socket.SocketKind
STREAM, DATAGRAM = Kind.SOCK_STREAM, Kind.SOCK_DGRAM
PROTOCOL = {STREAM: abi.Protocol.TCP, DATAGRAM: abi.Protocol.UDP}
BACKENDS = ["alice", "carol", "node", "bob"]
SMALL, LARGE = b"hello", bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def wires(compiled: build.Object) -> Iterator[Wires]:
    with opened(compiled, SIZES, BACKENDS) as made:
        yield made


@pytest.fixture(params=[V4, V6], ids=["v4", "v6"])
def places(request: pytest.FixtureRequest) -> Places:
    found: Places = request.param
    return found


@pytest.fixture(params=[STREAM, DATAGRAM], ids=["tcp", "udp"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_outside_reaches_a_nodeport(wires: Wires, places: Places, kind: Kind, backend: str) -> None:
    wires.lead(places, PROTOCOL[kind], backend)
    for data in (SMALL, LARGE if kind == STREAM else SMALL * 250):
        heard = wires.ask("client", places, kind, (places.node, NODE_PORT), data)
        assert heard.data == data
        assert heard.client == (places.node if backend == "carol" else places.client)
        if backend == "carol":
            assert PORTS[0] <= heard.port <= PORTS[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_outside_reaches_a_cluster_ip(wires: Wires, places: Places, kind: Kind, backend: str) -> None:
    wires.lead(places, PROTOCOL[kind], backend)
    wires.command("peer", "ip", "route", "replace", places.service, "via", places.node)
    wires.command("client", "ip", "route", "replace", places.service, "via", _router(places))
    assert wires.ask("client", places, kind, (places.service, SERVICE_PORT)).data == SMALL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", ["service", "node"])
def test_a_process_of_the_node(wires: Wires, places: Places, kind: Kind, backend: str, target: str) -> None:
    """Its ClusterIP leaves by the uplink, its own NodePort by loopback."""
    wires.lead(places, PROTOCOL[kind], backend)
    to = (places.service, SERVICE_PORT) if target == "service" else (places.node, NODE_PORT)
    for data in (SMALL, LARGE if kind == STREAM else SMALL * 250):
        heard = wires.ask("node", places, kind, to, data)
        assert (heard.data, heard.client) == (data, places.node)


def _router(places: Places) -> str:
    return "198.51.100.1" if places is V4 else "2001:db8:9::1"


@pytest.fixture
def strict(wires: Wires) -> Iterator[None]:
    wires.command("node", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    yield
    wires.command("node", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_strict_reverse_path_filters(wires: Wires, kind: Kind, backend: str) -> None:
    wires.lead(V4, PROTOCOL[kind], backend)
    for short, address, port in (
        ("client", V4.node, NODE_PORT),
        ("node", V4.service, SERVICE_PORT),
        ("node", V4.node, NODE_PORT),
    ):
        assert wires.ask(short, V4, kind, (address, port)).data == SMALL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("short", "target"), [("client", "node"), ("node", "service"), ("node", "node")])
def test_large_datagrams_come_in_pieces(wires: Wires, places: Places, backend: str, short: str, target: str) -> None:
    wires.lead(places, abi.Protocol.UDP, backend)
    port = NODE_PORT if target == "node" else SERVICE_PORT
    data = bytes(range(250)) * 20
    if (short, target) == ("node", "node") and backend != "node":
        # Over loopback a datagram is in one piece, and its sender is told how small it must be. Linux remembers that
        # for IPv4; IPv6 goes on to believe that everything fits into loopback, so there the application has to know.
        wires.command("node", "ip", "route", "flush", "cache")
        with pytest.raises(OSError, match="Message too long"):
            wires.ask(short, places, DATAGRAM, (getattr(places, target), port), data)
        if places is V6:
            return
    assert wires.ask(short, places, DATAGRAM, (getattr(places, target), port), data).data == data


@pytest.mark.parametrize(("short", "target"), [("client", "node"), ("node", "service"), ("node", "node")])
def test_without_endpoints_it_is_refused(wires: Wires, places: Places, kind: Kind, short: str, target: str) -> None:
    wires.lead(places, PROTOCOL[kind], None)
    port = NODE_PORT if target == "node" else SERVICE_PORT
    with pytest.raises(ConnectionRefusedError):
        wires.ask(short, places, kind, (getattr(places, target), port))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("short", "target"), [("client", "node"), ("node", "service"), ("node", "node")])
def test_a_refusal_of_the_backend_comes_back(
    wires: Wires, places: Places, kind: Kind, backend: str, short: str, target: str
) -> None:
    wires.lead(places, PROTOCOL[kind], backend, port=9)
    port = NODE_PORT if target == "node" else SERVICE_PORT
    with pytest.raises(ConnectionRefusedError):
        wires.ask(short, places, kind, (getattr(places, target), port))


@pytest.fixture
def narrow(wires: Wires, places: Places) -> Iterator[Places]:
    """Have paths to the backend and to the client that take less than everybody's links."""
    routes = [(places.carol, places.peer, "1400"), (places.client, places.peer, "1350")]
    for address, via, mtu in routes:
        wires.command("node", "ip", "route", "replace", address, "via", via, "mtu", "lock", mtu)
    yield places
    for address, _, _ in routes:
        wires.command("node", "ip", "route", "del", address)
    for short in ("node", "peer", "client", "alice", "bob"):
        for family in ("-4", "-6"):
            wires.command(short, "ip", family, "route", "flush", "cache")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("short", "target"), [("client", "node"), ("node", "service"), ("node", "node")])
def test_a_narrow_path_is_found_out(wires: Wires, narrow: Places, backend: str, short: str, target: str) -> None:
    """Both directions carry more than the path takes in a packet: whoever sends it hears so, be it through NAT."""
    wires.lead(narrow, abi.Protocol.TCP, backend)
    port = NODE_PORT if target == "node" else SERVICE_PORT
    assert wires.ask(short, narrow, STREAM, (getattr(narrow, target), port), LARGE).data == LARGE
