"""How connections end: FIN and RST, late segments, halves that are gone, ports that are used again."""

import pytest
from scapy.all import IPv6

from ebpfnet.abi import FlowState
from tests import packets
from tests.packets import BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog.loaded import Datapath, Result


class Client:
    """Alice, who talks to Bob through the service or directly, and Bob's answers."""

    def __init__(self, datapath: Datapath, ends: Ends, *, direct: bool = False) -> None:
        self.datapath = datapath
        self.ends = ends
        self.to = (ends.bob, POD_PORT) if direct else (ends.service, SERVICE_PORT)
        self.key = packets.tuple_of(ends.alice, self.to[0], CLIENT_PORT, self.to[1], 6)
        self.back = packets.tuple_of(ends.bob, ends.alice, POD_PORT, CLIENT_PORT, 6)

    def says(self, *flags: str) -> str:
        """Send segments from Alice; returns who gets the last."""
        header = packets.ethernet() / packets.ip(self.ends.alice, self.to[0])
        for each in flags:
            got = self.datapath.from_pod(header / packets.tcp(each, dport=self.to[1]))
        return str((got.packet[IPv6] if self.ends.ipv6 else got.packet.payload).dst)

    def hears(self, *flags: str) -> Result:
        """Send segments from Bob to Alice; returns what became of the last."""
        header = packets.ethernet(BOB_MAC) / packets.ip(self.ends.bob, self.ends.alice)
        for each in flags:
            got = self.datapath.from_pod(header / packets.tcp(each, POD_PORT, CLIENT_PORT), BOB_IFINDEX)
        return got

    def connects(self) -> None:
        self.says("S")
        self.hears("SA")
        self.says("A")

    @property
    def states(self) -> tuple[FlowState | None, FlowState | None]:
        """The states of the two entries."""
        forward, back = self.datapath.flow(self.key), self.datapath.flow(self.back)
        return forward.state if forward else None, back.state if back else None


BOTH_NEW, BOTH_ESTABLISHED, BOTH_CLOSING = ((state, state) for state in list(FlowState)[:3])


def choose(datapath: Datapath, ends: Ends, backend: str, tag: int) -> None:
    """Let the service have one backend."""
    datapath.set_service(ends.service, SERVICE_PORT, 6, [(backend, POD_PORT)], tag)


@pytest.fixture
def client(datapath: Datapath, ends: Ends) -> Client:
    choose(datapath, ends, ends.bob, 56)
    return Client(datapath, ends)


# Halves


def test_a_late_segment_of_a_closed_connection_closes_no_other(client: Client, ends: Ends) -> None:
    """The answers' entry is another connection's by now."""
    direct = Client(client.datapath, ends, direct=True)
    direct.connects()
    direct.says("FA")
    direct.hears("FA")
    client.connects()
    assert client.states == BOTH_ESTABLISHED
    for late in ("FA", "R", "A"):
        direct.says(late)
        assert client.states == BOTH_ESTABLISHED


def test_a_reset_closes_also_the_half_that_it_restores(client: Client) -> None:
    client.connects()
    client.datapath.tables["flows"].delete_batch([client.back.pack()])
    client.says("R")
    assert client.states == BOTH_CLOSING


def test_an_answer_establishes_also_the_half_that_it_restores(client: Client) -> None:
    client.says("S")
    client.datapath.tables["flows"].delete_batch([client.key.pack()])
    client.hears("SA")
    assert client.states == BOTH_ESTABLISHED


# Resets


@pytest.mark.parametrize("goes_on", ["client", "backend"])
def test_a_connection_that_goes_on_after_a_reset_is_open(client: Client, goes_on: str) -> None:
    """A reset with a wrong sequence number is ignored by the one who gets it."""
    client.connects()
    client.hears("R")
    assert client.states == BOTH_CLOSING
    (client.says if goes_on == "client" else client.hears)("PA")
    assert client.states == BOTH_ESTABLISHED
    assert client.datapath.flow(client.key) is not None


def test_a_refused_connection_is_closed_until_it_is_tried_again(client: Client) -> None:
    client.says("S")
    client.hears("RA")
    assert client.states == BOTH_CLOSING
    client.says("S")
    assert client.states == BOTH_NEW


def test_a_reset_that_answers_what_came_after_it_closes(client: Client) -> None:
    client.connects()
    client.says("R")
    client.hears("PA")
    client.says("R")
    assert client.states == BOTH_CLOSING


# Both said goodbye


@pytest.mark.parametrize("first", ["client", "backend"])
def test_what_both_closed_stays_closed(client: Client, first: str) -> None:
    client.connects()
    if first == "client":
        client.says("FA")
        assert client.states == BOTH_ESTABLISHED
        client.hears("A", "PA", "FA")
    else:
        client.hears("FA")
        client.says("A", "PA", "FA")
    assert client.states == BOTH_CLOSING
    client.says("A", "FA")
    client.hears("A", "FA", "A")
    assert client.states == BOTH_CLOSING


def test_a_connection_that_was_reset_in_vain_closes_when_both_say_so(client: Client) -> None:
    client.connects()
    client.hears("R")
    client.says("FA")
    assert client.states == BOTH_ESTABLISHED
    client.hears("FA")
    assert client.states == BOTH_CLOSING
    client.says("A")
    assert client.states == BOTH_CLOSING


# Ports used again


@pytest.mark.parametrize("last", ["FA", "R", "RA"])
def test_a_client_that_closed_may_connect_again_though_its_backend_never_answered(
    client: Client, ends: Ends, last: str
) -> None:
    client.connects()
    client.says(last)
    choose(client.datapath, ends, ends.carol, 57)
    assert client.says("S") == ends.carol
    assert client.says("A", "PA") == ends.carol


def test_an_open_connection_keeps_its_backend_when_a_segment_opens_it_again(client: Client, ends: Ends) -> None:
    client.connects()
    choose(client.datapath, ends, ends.carol, 57)
    assert client.says("S") == ends.bob
