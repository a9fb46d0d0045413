"""SCTP through services: ports, its checksum of everything, and associations that begin and end."""

import errno
import random

import pytest
from scapy.all import (
    IP,
    SCTP,
    IPv6ExtHdrFragment,
    Packet,
    Raw,
    SCTPChunkAbort,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkSACK,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
    fragment,
    fragment6,
)

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowState, Outcome
from ebpfnet.datapath import testrun
from tests import crc32c, packets
from tests.packets import BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, STRANGER_MAC, UPLINK_MAC, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath

SET = 80
LENGTHS = (16, 17, 18, 19, 20, 33, 255, 256, 257, 999, 1460, 2047, 2048, 3001, 3400)
"""A test run's packet is in one page (kernel net/bpf/test_run.c); longer ones are in tests/unit/test_crc32c.py."""


@pytest.fixture
def bob(datapath: Datapath, ends: Ends) -> Datapath:
    offer(datapath, ends, ends.bob)
    return datapath


def offer(datapath: Datapath, ends: Ends, backend: str, port: int = POD_PORT) -> None:
    serving.put_set(datapath, SET, [(backend, port)])
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, 132)


def chunks(length: int, sport: int = CLIENT_PORT, dport: int = SERVICE_PORT) -> bytes:
    """Return an SCTP packet of so many bytes with chunks of chance, sealed."""
    chance = random.Random(length)
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    return crc32c.sealed(ports + bytes(8) + b"\0" + chance.randbytes(length - 13))


def sctp_of(ends: Ends, raw: bytes) -> bytes:
    return raw[14 + (40 if ends.ipv6 else 20) :]


def wrapped(ends: Ends, payload: bytes) -> bytes:
    kind = {"nh": 132} if ends.ipv6 else {"proto": 132}
    return bytes(packets.ethernet() / packets.ip(ends.alice, ends.service, **kind) / Raw(payload))


# The checksum


@pytest.mark.parametrize("length", LENGTHS)
def test_the_checksum_follows_the_ports(bob: Datapath, ends: Ends, length: int) -> None:
    sent = chunks(length)
    got = bob.from_pod(wrapped(ends, sent))
    out = sctp_of(ends, got.raw)
    assert (got.outcome, got.ifindex) == (Outcome.POD, BOB_IFINDEX)
    assert out == chunks(length, CLIENT_PORT, POD_PORT)[:4] + sent[4:8] + crc32c.checksum(out) + sent[12:]


def test_the_checksum_of_an_answer(bob: Datapath, ends: Ends) -> None:
    bob.from_pod(wrapped(ends, chunks(40)))
    answer = packets.ip(ends.bob, ends.alice, **({"nh": 132} if ends.ipv6 else {"proto": 132}))
    sent = packets.ethernet(BOB_MAC) / answer / Raw(chunks(77, POD_PORT, CLIENT_PORT))
    out = sctp_of(ends, bob.from_pod(sent, BOB_IFINDEX).raw)
    assert (out[:4], out[8:12]) == (chunks(77, SERVICE_PORT, CLIENT_PORT)[:4], crc32c.checksum(out))


def test_a_wrong_checksum_stays_wrong(bob: Datapath, ends: Ends) -> None:
    sent = chunks(100)
    broken = sent[:50] + bytes([sent[50] ^ 1]) + sent[51:]
    out = sctp_of(ends, bob.from_pod(wrapped(ends, broken)).raw)
    assert out[8:12] != crc32c.checksum(out)


def test_a_checksum_that_the_device_computes_is_left_to_it(bob: Datapath, ends: Ends) -> None:
    sent = chunks(100)
    out = sctp_of(ends, bob.from_pod(wrapped(ends, sent[:8] + bytes(4) + sent[12:])).raw)
    assert out == chunks(100, CLIENT_PORT, POD_PORT)[:4] + sent[4:8] + bytes(4) + sent[12:]


def test_the_same_port_needs_no_checksum(datapath: Datapath, ends: Ends) -> None:
    """The addresses are not covered."""
    offer(datapath, ends, ends.bob, SERVICE_PORT)
    sent = chunks(100)
    got = datapath.from_pod(wrapped(ends, sent))
    assert (got.outcome, sctp_of(ends, got.raw)) == (Outcome.POD, sent)


@pytest.mark.parametrize("length", [20, 21])
def test_a_card_s_sum_follows(datapath: Datapath, ends: Ends, length: int) -> None:
    """The kernel compares the sum of the whole packet after the run; one too old for that only runs the program."""
    offer(datapath, ends, ends.carol)
    datapath.from_pod(wrapped(ends, chunks(40)))
    kind = {"nh": 132} if ends.ipv6 else {"proto": 132}
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice, **kind)
    answer = bytes(header / Raw(chunks(length, POD_PORT, CLIENT_PORT)))
    fd = datapath.programs["from_network"].fd
    try:
        done = testrun.run(fd, answer, ingress_ifindex=packets.UPLINK_IFINDEX, checksum_complete=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        done = testrun.run(fd, answer, ingress_ifindex=packets.UPLINK_IFINDEX)
    assert done.cb[0] == Outcome.POD
    out = sctp_of(ends, done.packet)
    assert out[8:12] == crc32c.checksum(out)


# Fragments


def pieces(ends: Ends, payload: bytes) -> list[Packet]:
    if ends.ipv6:
        header = packets.ip(ends.alice, ends.service) / IPv6ExtHdrFragment(id=4711)
        return list(fragment6(header / SCTP(payload), 640))
    return list(fragment(IP(bytes(packets.ip(ends.alice, ends.service, id=4711, proto=132) / Raw(payload))), 600))


def test_fragments_keep_their_ports(datapath: Datapath, ends: Ends) -> None:
    offer(datapath, ends, ends.bob, SERVICE_PORT)
    payload = bytes(SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkData(data=bytes(1500)))
    got = [datapath.from_pod(packets.ethernet() / piece) for piece in pieces(ends, payload)]
    assert {(result.outcome, result.ifindex) for result in got} == {(Outcome.POD, BOB_IFINDEX)}
    skip = 14 + 40 + 8 if ends.ipv6 else 14 + 20
    assert b"".join(result.raw[skip:] for result in got) == payload


def test_a_fragment_s_checksum_covers_more_than_we_see(bob: Datapath, ends: Ends) -> None:
    payload = bytes(SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkData(data=bytes(1500)))
    got = bob.from_pod(packets.ethernet() / pieces(ends, payload)[0])
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.REWRITE)


# Associations


def says(datapath: Datapath, ends: Ends, *those: Packet) -> str:
    """Send chunks from Alice; returns who got the last."""
    for chunk in those:
        transport = SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / chunk
        got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / transport)
    return serving.ends_of(got).destination


def hears(datapath: Datapath, ends: Ends, *those: Packet) -> None:
    for chunk in those:
        transport = SCTP(sport=POD_PORT, dport=CLIENT_PORT) / chunk
        datapath.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / transport, BOB_IFINDEX)


def states(datapath: Datapath) -> set[FlowState]:
    return {flow.state for flow in datapath.flows().values()}


def associate(datapath: Datapath, ends: Ends) -> None:
    says(datapath, ends, SCTPChunkInit())
    assert states(datapath) == {FlowState.NEW}
    hears(datapath, ends, SCTPChunkInitAck())
    says(datapath, ends, SCTPChunkCookieEcho(), SCTPChunkData(data=b"hello"))
    assert states(datapath) == {FlowState.ESTABLISHED}


def test_an_association_that_both_shut_down_is_closed(bob: Datapath, ends: Ends) -> None:
    associate(bob, ends)
    says(bob, ends, SCTPChunkShutdown())
    hears(bob, ends, SCTPChunkData(data=b"what was left"))
    assert states(bob) == {FlowState.ESTABLISHED}
    hears(bob, ends, SCTPChunkShutdownAck())
    assert states(bob) == {FlowState.CLOSING}
    says(bob, ends, SCTPChunkShutdownComplete())
    assert states(bob) == {FlowState.CLOSING}


def test_an_abort_closes_until_somebody_goes_on(bob: Datapath, ends: Ends) -> None:
    associate(bob, ends)
    hears(bob, ends, SCTPChunkAbort())
    assert states(bob) == {FlowState.CLOSING}
    says(bob, ends, SCTPChunkSACK())
    assert states(bob) == {FlowState.ESTABLISHED}


def test_a_port_used_again_chooses_anew(bob: Datapath, ends: Ends) -> None:
    associate(bob, ends)
    offer(bob, ends, ends.carol)
    assert says(bob, ends, SCTPChunkInit()) == ends.bob
    says(bob, ends, SCTPChunkAbort())
    assert says(bob, ends, SCTPChunkInit()) == ends.carol


def test_an_association_that_nobody_serves_is_unreachable(datapath: Datapath, ends: Ends) -> None:
    serving.put_set(datapath, SET, [])
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, 132)
    got = datapath.from_pod(serving.calls(ends, "sctp"))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.NO_ENDPOINTS)
    assert ("ICMPv6 Destination Unreachable" if ends.ipv6 else "ICMP") in got.packet
    assert packets.has_right_checksums(got.raw)


def test_an_abort_is_never_answered(datapath: Datapath, ends: Ends) -> None:
    serving.put_set(datapath, SET, [])
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, 132)
    abort = SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkAbort()
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / abort)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_ENDPOINTS)


def test_beside_another_plugin(bob: Datapath, ends: Ends) -> None:
    sent = wrapped(ends, bytes(SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkInit()))
    got = bob.run("from_pod_beside", sent, packets.ALICE_IFINDEX)
    out = sctp_of(ends, got.raw)
    assert serving.ends_of(got) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)
    assert out[8:12] == crc32c.checksum(out)
    answer = SCTP(sport=POD_PORT, dport=CLIENT_PORT) / SCTPChunkInitAck()
    back = bob.run("to_pod_beside", packets.ethernet() / packets.ip(ends.bob, ends.alice) / answer, 0)
    out = sctp_of(ends, back.raw)
    assert serving.ends_of(back) == (ends.service, ends.alice, SERVICE_PORT, CLIENT_PORT)
    assert out[8:12] == crc32c.checksum(out)


def test_the_middle_of_an_unknown_association_is_somebody_else_s(bob: Datapath, ends: Ends) -> None:
    sent = wrapped(ends, bytes(SCTP(sport=CLIENT_PORT, dport=SERVICE_PORT) / SCTPChunkData(data=b"x")))
    assert bob.run("from_pod_beside", sent, packets.ALICE_IFINDEX).raw == sent
    assert not bob.flows()
