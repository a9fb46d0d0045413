"""What goes through a service is counted for each backend: connections, packets, bytes."""

import dataclasses
import time

import pytest
from scapy.all import Packet

from ebpfnet import abi
from ebpfnet.abi import FlowFlag
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath
from tests.prog.serving import TRANSPORTS

SET = 81
PROGRAMS = pytest.mark.parametrize("program", ["from_pod", "from_pod_beside"])


@pytest.fixture
def bob(datapath: Datapath, ends: Ends) -> Datapath:
    """Serve everything with Bob; nothing is counted yet."""
    table = datapath.tables["usage"]
    table.delete_batch([key for key, _ in table.items()])
    serving.put_set(datapath, SET, [(ends.bob, POD_PORT)])
    for protocol, _ in TRANSPORTS.values():
        serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), SERVICE_PORT, protocol)
    return datapath


def used(datapath: Datapath, ends: Ends) -> abi.Usage:
    """Return what was counted for Bob, on all processors together."""
    raw = datapath.tables["usage"].get(abi.Member(SET, abi.Backend(packets.raw(ends.bob), POD_PORT)).pack()) or b""
    size = abi.Usage.size()
    each = [abi.Usage.unpack(raw[at : at + size]) for at in range(0, len(raw), size)]
    return abi.Usage(sum(u.connections for u in each), sum(u.packets for u in each), sum(u.bytes for u in each))


def waiting(datapath: Datapath) -> tuple[int, int]:
    """Return packets and bytes that are still in flows."""
    flows = datapath.flows().values()
    return sum(flow.packets for flow in flows), sum(flow.bytes for flow in flows)


def grow_old(datapath: Datapath, seconds: float = 2) -> None:
    for key, flow in datapath.flows().items():
        older = dataclasses.replace(flow, seen_ns=time.monotonic_ns() - int(seconds * 1e9))
        datapath.tables["flows"].put(key.pack(), older.pack())


def asks(datapath: Datapath, ends: Ends, transport: Packet, program: str = "from_pod") -> int:
    """Send a packet of Alice's; returns its length."""
    sent = bytes(packets.ethernet() / packets.ip(ends.alice, ends.service) / transport)
    datapath.run(program, sent, ALICE_IFINDEX)
    return len(sent)


def answers(datapath: Datapath, ends: Ends, transport: Packet, program: str = "from_pod") -> int:
    sent = bytes(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / transport)
    datapath.run(program, sent, BOB_IFINDEX)
    return len(sent)


@PROGRAMS
@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_a_connection_counts_when_it_is_answered(bob: Datapath, ends: Ends, protocol: str, program: str) -> None:
    build = TRANSPORTS[protocol][1]
    sent = asks(bob, ends, build(dport=SERVICE_PORT), program)
    assert used(bob, ends) == abi.Usage(0, 0, 0)
    assert waiting(bob) == (1, sent)
    got = answers(bob, ends, build(sport=POD_PORT, dport=CLIENT_PORT), program)
    assert used(bob, ends) == abi.Usage(1, 2, sent + got)
    assert waiting(bob) == (0, 0)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_connection_that_nobody_answers_counts_in_the_end(bob: Datapath, ends: Ends, protocol: str) -> None:
    build = TRANSPORTS[protocol][1]
    total = asks(bob, ends, build())
    grow_old(bob, 90)
    asks(bob, ends, build())
    assert used(bob, ends) == abi.Usage(1, 1, total)


def test_a_refused_connection_counts(bob: Datapath, ends: Ends) -> None:
    asks(bob, ends, packets.tcp("S"))
    answers(bob, ends, packets.tcp("RA", POD_PORT, CLIENT_PORT))
    assert used(bob, ends).connections == 1


@PROGRAMS
def test_packets_wait_in_their_flow_and_are_added_once_a_second(bob: Datapath, ends: Ends, program: str) -> None:
    sent = [asks(bob, ends, packets.udp(data=bytes(10)), program)]
    sent += [answers(bob, ends, packets.udp(POD_PORT, CLIENT_PORT, bytes(20)), program)]
    before = used(bob, ends)
    assert before == abi.Usage(1, 2, sum(sent))  # the first answer establishes, and both hand over what they counted
    more = [asks(bob, ends, packets.udp(data=bytes(number)), program) for number in range(5)]
    assert used(bob, ends) == before
    assert waiting(bob) == (5, sum(more))
    grow_old(bob)
    more += [asks(bob, ends, packets.udp(), program)]
    assert used(bob, ends) == abi.Usage(1, 8, sum(sent + more))
    assert waiting(bob) == (0, 0)


def test_both_directions_count(bob: Datapath, ends: Ends) -> None:
    total = asks(bob, ends, packets.tcp("S"))
    total += answers(bob, ends, packets.tcp("SA", POD_PORT, CLIENT_PORT))
    total += asks(bob, ends, packets.tcp("A"))
    total += answers(bob, ends, packets.tcp("PA", POD_PORT, CLIENT_PORT, b"hello"))
    total += answers(bob, ends, packets.tcp("FA", POD_PORT, CLIENT_PORT))
    total += asks(bob, ends, packets.tcp("FA"))
    assert used(bob, ends) == abi.Usage(1, 6, total)
    assert waiting(bob) == (0, 0)


def test_the_same_port_again_is_another_connection(bob: Datapath, ends: Ends) -> None:
    total = asks(bob, ends, packets.tcp("S")) + asks(bob, ends, packets.tcp("R"))
    total += asks(bob, ends, packets.tcp("S"))
    total += answers(bob, ends, packets.tcp("SA", POD_PORT, CLIENT_PORT))
    assert used(bob, ends) == abi.Usage(2, 4, total)
    assert waiting(bob) == (0, 0)


def test_a_flow_that_timed_out_hands_over_what_it_has(bob: Datapath, ends: Ends) -> None:
    total = sum(asks(bob, ends, packets.udp()) for _ in range(3))
    grow_old(bob, 31)
    asks(bob, ends, packets.udp())
    assert used(bob, ends) == abi.Usage(1, 3, total)


def test_a_flow_whose_backend_is_gone_hands_over_what_it_has(bob: Datapath, ends: Ends) -> None:
    total = asks(bob, ends, packets.udp())
    total += answers(bob, ends, packets.udp(POD_PORT, CLIENT_PORT))
    total += asks(bob, ends, packets.udp()) + answers(bob, ends, packets.udp(POD_PORT, CLIENT_PORT))
    assert waiting(bob)[0] == 2
    for key, flow in bob.flows().items():
        bob.tables["flows"].put(key.pack(), dataclasses.replace(flow, flags=flow.flags | FlowFlag.GONE).pack())
    asks(bob, ends, packets.udp())
    assert used(bob, ends) == abi.Usage(1, 4, total)


def test_what_is_no_service_is_not_counted(bob: Datapath, ends: Ends) -> None:
    for _ in range(3):
        bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.udp(dport=POD_PORT))
    assert waiting(bob) == (0, 0)
    assert not list(bob.tables["usage"].items())
