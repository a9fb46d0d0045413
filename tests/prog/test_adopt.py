"""Connections that somebody else's rules translated go on when the rules are gone, and nobody notices."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ebpfnet import abi, adopt
from ebpfnet.datapath import build, conntrack
from ebpfnet.datapath.netlink import NETFILTER, Reader
from tests import packets
from tests.prog.conftest import SIZES
from tests.prog.wires import BACKEND_PORT, NODE_PORT, SERVICE_PORT, V4, V6, Places, Wires, opened

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOL: dict[int, int] = {STREAM: abi.Protocol.TCP, DATAGRAM: abi.Protocol.UDP}

RULES = """
table {family} kube-proxy {{
  chain services {{
    {family} daddr {service} meta l4proto {{ tcp, udp }} th dport {port} dnat to {backend}
    {family} daddr {node} meta l4proto {{ tcp, udp }} th dport {node_port} dnat to {backend}
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; {family} saddr {client} masquerade; }}
}}
"""


@pytest.fixture(scope="module")
def wires(compiled: build.Object) -> Iterator[Wires]:
    with opened(compiled, SIZES, ["carol"]) as made:
        yield made


@pytest.fixture(params=[V4, V6], ids=["v4", "v6"])
def places(request: pytest.FixtureRequest) -> Places:
    found: Places = request.param
    return found


def forget_services(wires: Wires) -> None:
    for name in ("services", "sets", "slots", "flows"):
        for key in [key for key, _ in wires.tables[name].items()]:
            wires.tables[name].delete(key)


def rules(wires: Wires, places: Places) -> str:
    """Do what kube-proxy does; return the table's name."""
    family = "ip" if places is V4 else "ip6"
    backend = f"{places.carol}:{BACKEND_PORT}" if places is V4 else f"[{places.carol}]:{BACKEND_PORT}"
    said = {"service": places.service, "node": places.node, "client": places.client, "backend": backend}
    text = RULES.format(family=family, port=SERVICE_PORT, node_port=NODE_PORT, **said)
    wires.command("node", "nft", "-f", "-", text=text)
    return family


def known(wires: Wires) -> list[conntrack.Translated]:
    def look() -> list[conntrack.Translated]:
        with Reader(NETFILTER) as reader:
            return list(conntrack.translated(reader))

    found: list[conntrack.Translated] = wires.inside("node", look)
    return found


def exchange(asking: socket.socket, data: bytes) -> bytes:
    asking.send(data)
    heard = b""
    while not heard.endswith(data):
        heard += asking.recv(65535)
    return heard


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(("short", "target"), [("bob", "service"), ("client", "node"), ("node", "service")])
def test_a_connection_goes_on(wires: Wires, places: Places, kind: int, short: str, target: str) -> None:
    forget_services(wires)
    family = rules(wires, places)
    port = NODE_PORT if target == "node" else SERVICE_PORT
    with wires.socket(short, places, kind) as asking:
        asking.connect((getattr(places, target), port))
        before = exchange(asking, b"before").splitlines()[0]
        sport = asking.getsockname()[1]
        # A datagram's connection is assured only after two seconds (Linux nf_conntrack_proto_udp.c).
        while not (found := [each for each in known(wires) if each.question.source_port == sport]):
            exchange(asking, b"more")
        wires.lead(places, PROTOCOL[kind], "carol")
        wires.mark_own(places)
        told = wires.inside("node", lambda: adopt.adopt(wires.tables))
        assert told["adopted"] >= 1
        exchange(asking, b"between")  # while both sides would translate it
        wires.command("node", "nft", "delete", "table", family, "kube-proxy")
        assert not [each for each in known(wires) if each in found]
        after = exchange(asking, b"after")
        assert after.endswith(b"after")
        if kind == DATAGRAM:  # of every datagram the backend says whom it came from
            assert after.splitlines()[0] == before
        flow = wires.tables["flows"].get(found[0].question.pack())
        assert flow is not None
        assert abi.Flow.unpack(flow).to.destination == packets.raw(places.carol)


def test_a_stream_is_not_hurt_while_it_is_taken_over(wires: Wires, places: Places) -> None:
    """Questions and answers are under way at every moment; what is lost in between is sent again."""
    forget_services(wires)
    family = rules(wires, places)
    echoed, stop, enough = [0], threading.Event(), threading.Event()
    with wires.socket("bob", places, STREAM) as asking:
        asking.connect((places.service, SERVICE_PORT))
        exchange(asking, b"before")

        def keep_asking() -> None:
            while not stop.is_set():
                exchange(asking, b"%d " % echoed[0])
                echoed[0] += 1
                enough.set()

        thread = threading.Thread(target=keep_asking)
        thread.start()
        assert enough.wait(30)
        wires.lead(places, abi.Protocol.TCP, "carol")
        wires.mark_own(places)
        assert wires.inside("node", lambda: adopt.adopt(wires.tables))["adopted"] == 1
        wires.command("node", "nft", "delete", "table", family, "kube-proxy")
        enough.clear()
        assert enough.wait(30)
        stop.set()
        thread.join()
        assert exchange(asking, b"after") == b"after"
