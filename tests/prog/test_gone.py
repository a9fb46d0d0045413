"""Connections whose backend is gone: the next packet of either side ends them."""

import dataclasses

import pytest
from scapy.all import ICMP, SCTP, TCP, ICMPv6DestUnreach, Packet, Raw, SCTPChunkAbort, SCTPChunkData

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, Outcome
from tests import packets
from tests.packets import ALICE_IFINDEX, ALICE_MAC, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath, Result
from tests.prog.serving import TRANSPORTS, calls, ends_of

SET = 79
PROGRAMS = ("from_pod", "from_pod_beside")


def segment(flags: str, *, back: bool = False, data: bytes = b"") -> Packet:
    ports = (POD_PORT, CLIENT_PORT) if back else (CLIENT_PORT, SERVICE_PORT)
    return TCP(sport=ports[0], dport=ports[1], flags=flags, seq=5000, ack=7000 if "A" in flags else 0) / Raw(data)


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, datapath: Datapath, ends: Ends) -> str:
    """Serve everything with Bob."""
    serving.put_set(datapath, SET, [(ends.bob, POD_PORT)])
    for protocol, _ in TRANSPORTS.values():
        serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, protocol)
    found: str = request.param
    return found


def says(datapath: Datapath, ends: Ends, program: str, transport: Packet) -> Result:
    return datapath.run(program, packets.ethernet() / packets.ip(ends.alice, ends.service) / transport, ALICE_IFINDEX)


def answers(datapath: Datapath, ends: Ends, program: str, transport: Packet) -> Result:
    return datapath.run(program, packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / transport, BOB_IFINDEX)


def backend_goes(datapath: Datapath) -> None:
    """Mark every connection, as the agent does."""
    for key, flow in datapath.flows().items():
        gone = dataclasses.replace(flow, flags=flow.flags | FlowFlag.GONE)
        datapath.tables["flows"].put(key.pack(), gone.pack())


def connect(datapath: Datapath, ends: Ends, program: str, protocol: str = "tcp") -> None:
    build = TRANSPORTS[protocol][1]
    datapath.run(program, calls(ends, protocol), ALICE_IFINDEX)
    if protocol == "tcp":
        answers(datapath, ends, program, segment("SA", back=True))
        says(datapath, ends, program, segment("A"))
    else:
        answers(datapath, ends, program, build(sport=POD_PORT, dport=CLIENT_PORT))
    assert len(datapath.flows()) == 2
    backend_goes(datapath)


def test_a_client_is_reset(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program)
    got = says(datapath, ends, program, segment("PA", data=b"hello"))
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.BACKEND_GONE, ALICE_IFINDEX)
    assert ends_of(got) == (ends.service, ends.alice, SERVICE_PORT, CLIENT_PORT)
    reset = got.packet[TCP]
    assert (reset.flags, reset.seq, got.packet.dst) == ("R", 7000, ALICE_MAC)
    assert packets.has_right_checksums(got.raw)
    assert not datapath.flows()


def test_a_backend_is_reset(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program)
    got = answers(datapath, ends, program, segment("PA", back=True, data=b"hello"))
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.BACKEND_GONE, BOB_IFINDEX)
    assert ends_of(got) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)
    assert (got.packet[TCP].flags, got.packet[TCP].seq) == ("R", 7000)
    assert not datapath.flows()


def test_a_goodbye_is_refused_too(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program)
    assert says(datapath, ends, program, segment("FA")).reason == DropReason.BACKEND_GONE


def test_a_reset_goes_its_way(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program)
    got = says(datapath, ends, program, segment("R"))
    assert got.outcome in {Outcome.POD, Outcome.STACK}
    assert ends_of(got) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
def test_datagrams_and_associations_are_unreachable(
    datapath: Datapath, ends: Ends, program: str, protocol: str
) -> None:
    connect(datapath, ends, program, protocol)
    transport = packets.udp() if protocol == "udp" else SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkData()
    got = says(datapath, ends, program, transport)
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.BACKEND_GONE)
    if ends.ipv6:
        assert got.packet[ICMPv6DestUnreach].code == 4
    else:
        assert (got.packet[ICMP].type, got.packet[ICMP].code) == (3, 3)
    assert packets.has_right_checksums(got.raw)
    assert not datapath.flows()


def test_an_abort_goes_its_way(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program, "sctp")
    abort = SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkAbort()
    assert says(datapath, ends, program, abort).outcome in {Outcome.POD, Outcome.STACK}


@pytest.mark.parametrize("protocol", ["tcp", "sctp"])
def test_who_connects_again_chooses_anew(datapath: Datapath, ends: Ends, program: str, protocol: str) -> None:
    connect(datapath, ends, program, protocol)
    serving.put_set(datapath, SET, [(ends.carol, POD_PORT)])
    got = datapath.run(program, calls(ends, protocol), ALICE_IFINDEX)
    assert ends_of(got).destination == ends.carol


def test_the_old_backend_may_take_the_connection_again(datapath: Datapath, ends: Ends, program: str) -> None:
    """The entry of its answers is still there, and marked."""
    connect(datapath, ends, program)
    assert ends_of(datapath.run(program, calls(ends, "tcp"), ALICE_IFINDEX)) == (
        ends.alice,
        ends.bob,
        CLIENT_PORT,
        POD_PORT,
    )
    assert not any(flow.flags & FlowFlag.GONE for flow in datapath.flows().values())


def test_another_connection_in_the_answers_place_stays(datapath: Datapath, ends: Ends, program: str) -> None:
    connect(datapath, ends, program)
    back = packets.tuple_of(ends.bob, ends.alice, POD_PORT, CLIENT_PORT, 6)
    flow = datapath.flow(back)
    assert flow is not None
    other = dataclasses.replace(flow, to=dataclasses.replace(flow.to, source_port=1), flags=FlowFlag.REPLY)
    datapath.tables["flows"].put(back.pack(), other.pack())
    assert says(datapath, ends, program, segment("A")).reason == DropReason.BACKEND_GONE
    assert list(datapath.flows()) == [back]


def test_an_answer_beside_is_dropped_at_its_client(datapath: Datapath, ends: Ends) -> None:
    serving.put_set(datapath, SET, [(ends.carol, POD_PORT)])
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, 6)
    datapath.run("from_pod_beside", calls(ends, "tcp"), ALICE_IFINDEX)
    backend_goes(datapath)
    answer = packets.ethernet() / packets.ip(ends.carol, ends.alice) / segment("SA", back=True)
    got = datapath.run("to_pod_beside", answer, 0)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.BACKEND_GONE)
    assert not datapath.flows()
