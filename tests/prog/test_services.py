"""Services: a backend for each connection, the answer from the service's address, and what happens without one."""

from collections.abc import Callable

import pytest
from scapy.all import ICMP, IP, TCP, UDP, Ether, ICMPv6DestUnreach, IPerror, IPerror6, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, FlowState, Hook, Outcome
from tests import packets
from tests.packets import (
    ALICE_IFINDEX,
    ALICE_MAC,
    BOB_IFINDEX,
    BOB_MAC,
    CLIENT_PORT,
    GATEWAY_MAC,
    POD_PORT,
    SERVICE_PORT,
    STRANGER_MAC,
    UPLINK_MAC,
    Ends,
)
from tests.prog.loaded import Datapath, Result

BUILDERS: dict[str, Callable[..., Packet]] = {"tcp": packets.tcp, "udp": packets.udp}


def ip_of(packet: Ether) -> IP | IPv6:
    return packet[IPv6] if IPv6 in packet else packet[IP]


def ends_of(got: Result) -> tuple[str, str, int, int]:
    packet = got.packet
    transport = packet[TCP] if TCP in packet else packet[UDP]
    return ip_of(packet).src, ip_of(packet).dst, transport.sport, transport.dport


@pytest.fixture
def only_bob(datapath: Datapath, ends: Ends) -> Datapath:
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.bob, POD_PORT)], 50 + protocol)
    return datapath


@pytest.fixture
def only_carol(datapath: Datapath, ends: Ends) -> Datapath:
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.carol, POD_PORT)], 70 + protocol)
    return datapath


@pytest.mark.parametrize("protocol", BUILDERS)
def test_there_and_back_on_one_node(only_bob: Datapath, ends: Ends, protocol: str) -> None:
    build = BUILDERS[protocol]
    there = only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / build())
    assert (there.outcome, there.ifindex) == (Outcome.POD, BOB_IFINDEX)
    assert ends_of(there) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)
    assert packets.has_right_checksums(there.raw)
    answer = build(sport=POD_PORT, dport=CLIENT_PORT)
    back = only_bob.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / answer, BOB_IFINDEX)
    assert (back.outcome, back.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert ends_of(back) == (ends.service, ends.alice, SERVICE_PORT, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


@pytest.mark.parametrize("protocol", BUILDERS)
def test_there_and_back_over_the_network(only_carol: Datapath, ends: Ends, protocol: str) -> None:
    build = BUILDERS[protocol]
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / build())
    assert there.outcome == Outcome.STACK
    assert ends_of(there) == (ends.alice, ends.carol, CLIENT_PORT, POD_PORT)
    assert packets.has_right_checksums(there.raw)
    answer = packets.ip(ends.carol, ends.alice) / build(sport=POD_PORT, dport=CLIENT_PORT)
    back = only_carol.from_network(packets.ethernet(STRANGER_MAC, UPLINK_MAC) / answer)
    assert (back.outcome, back.ifindex, back.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    assert ends_of(back) == (ends.service, ends.alice, SERVICE_PORT, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


def test_the_flow_names_its_service(only_bob: Datapath, ends: Ends) -> None:
    only_bob.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp())
    key = packets.tuple_of(ends.alice, ends.service, CLIENT_PORT, SERVICE_PORT, 6)
    backend = packets.tuple_of(ends.alice, ends.bob, CLIENT_PORT, POD_PORT, 6)
    forward, back = only_bob.flow(key), only_bob.flow(backend.reverse())
    assert forward is not None
    assert back is not None
    assert (forward.to, back.to) == (backend, key.reverse())
    assert (forward.flags, back.flags) == (FlowFlag.NAT, FlowFlag.NAT | FlowFlag.REPLY)
    assert forward.service == back.service == 56
    assert len(only_bob.flows()) == 2


def test_a_connection_keeps_its_backend(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp()
    first = ends_of(datapath.from_pod(sent))
    assert {ends_of(datapath.from_pod(sent)) for _ in range(40)} == {first}


def test_connections_spread(datapath: Datapath, ends: Ends) -> None:
    seen = set()
    for port in range(CLIENT_PORT, CLIENT_PORT + 60):
        got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp(sport=port))
        seen.add(ends_of(got)[1])
    assert seen == {ends.bob, ends.carol}


def test_another_port_of_the_address_is_no_service(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp(dport=81)
    got = datapath.from_pod(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


def test_a_missing_slot_is_named(datapath: Datapath, ends: Ends) -> None:
    frontend = abi.Frontend(packets.raw(ends.service), SERVICE_PORT, 6)
    datapath.tables["services"].put(frontend.pack(), abi.Service(9999, 9999).pack())
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp())
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_SLOT)


# Hairpin


@pytest.mark.parametrize("protocol", BUILDERS)
def test_a_pod_that_reaches_itself_sees_the_service(datapath: Datapath, ends: Ends, protocol: str) -> None:
    build = BUILDERS[protocol]
    there = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.lonely) / build())
    assert (there.outcome, there.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert ends_of(there) == (ends.lonely, ends.alice, CLIENT_PORT, POD_PORT)
    assert packets.has_right_checksums(there.raw)
    back = datapath.from_pod(
        packets.ethernet() / packets.ip(ends.alice, ends.lonely) / build(sport=POD_PORT, dport=CLIENT_PORT)
    )
    assert (back.outcome, back.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert ends_of(back) == (ends.lonely, ends.alice, SERVICE_PORT, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)


# Without endpoints


def test_no_endpoint_resets_a_connection(datapath: Datapath, ends: Ends) -> None:
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp())
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.NO_ENDPOINTS, ALICE_IFINDEX)
    reset = got.packet
    assert (reset.src, reset.dst) == (GATEWAY_MAC, ALICE_MAC)
    assert ends_of(got) == (ends.empty, ends.alice, SERVICE_PORT, CLIENT_PORT)
    assert (reset[TCP].flags, reset[TCP].seq, reset[TCP].ack) == ("RA", 0, 1001)
    assert packets.has_right_checksums(got.raw)
    assert len(got.raw) == (74 if ends.ipv6 else 54)
    assert not datapath.flows()


def test_no_endpoint_resets_with_the_acknowledged_number(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp("PA", data=b"stray data" * 20)
    got = datapath.from_pod(sent)
    assert (got.outcome, got.packet[TCP].flags, got.packet[TCP].seq) == (Outcome.REJECT, "R", 2000)
    assert packets.has_right_checksums(got.raw)


def test_data_in_the_first_segment_counts(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp("S", data=b"12345")
    assert datapath.from_pod(sent).packet[TCP].ack == 1006


def test_a_reset_is_never_answered(datapath: Datapath, ends: Ends) -> None:
    got = datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp("R"))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_ENDPOINTS)


@pytest.mark.parametrize("data", [b"", b"x", b"question" * 60], ids=["empty", "odd", "long"])
def test_no_endpoint_is_unreachable_for_datagrams(datapath: Datapath, ends: Ends, data: bytes) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.empty, ttl=33) / packets.udp(data=data)
    got = datapath.from_pod(sent)
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.NO_ENDPOINTS)
    error, sent = got.packet, Ether(bytes(sent))
    assert (ip_of(error).src, ip_of(error).dst, error.dst) == (ends.empty, ends.alice, ALICE_MAC)
    if ends.ipv6:
        assert error[ICMPv6DestUnreach].code == 4
        quoted = bytes(error[ICMPv6DestUnreach].payload)
        assert error[IPerror6].dst == ends.empty
    else:
        assert (error[ICMP].type, error[ICMP].code) == (3, 3)
        quoted = bytes(error[ICMP].payload)
        assert error[IPerror].dst == ends.empty
    assert bytes(sent)[14 : 14 + len(quoted)] == quoted
    assert packets.has_right_checksums(got.raw)
    assert not datapath.flows()


def test_a_refusal_is_counted_as_such(datapath: Datapath, ends: Ends) -> None:
    index = (Hook.FROM_POD * len(Outcome) + Outcome.REJECT).to_bytes(4, "little")

    def count() -> int:
        raw = datapath.tables["forwards"].get(index) or b""
        return sum(abi.Counter.unpack(raw[at : at + 16]).packets for at in range(0, len(raw), 16))

    before = count()
    datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp())
    assert count() == before + 1


# One source port, several connections


def test_a_closed_port_used_again_chooses_anew(only_bob: Datapath, ends: Ends) -> None:
    opens = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp()
    ours = packets.ethernet() / packets.ip(ends.alice, ends.service)
    theirs = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice)
    only_bob.from_pod(opens)
    only_bob.from_pod(theirs / packets.tcp("SA", POD_PORT, CLIENT_PORT), BOB_IFINDEX)
    only_bob.from_pod(ours / packets.tcp("FA"))
    only_bob.from_pod(theirs / packets.tcp("FA", POD_PORT, CLIENT_PORT), BOB_IFINDEX)
    assert {flow.state for flow in only_bob.flows().values()} == {FlowState.CLOSING}
    assert ends_of(only_bob.from_pod(ours / packets.tcp("A")))[1] == ends.bob
    only_bob.set_service(ends.service, SERVICE_PORT, 6, [(ends.carol, POD_PORT)], 77)
    assert ends_of(only_bob.from_pod(ours / packets.tcp("A")))[1] == ends.bob
    assert ends_of(only_bob.from_pod(opens))[1] == ends.carol


def test_a_half_closed_connection_stays(only_bob: Datapath, ends: Ends) -> None:
    theirs = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice)
    ours = packets.ethernet() / packets.ip(ends.alice, ends.service)
    only_bob.from_pod(ours / packets.tcp())
    only_bob.from_pod(theirs / packets.tcp("SA", POD_PORT, CLIENT_PORT), BOB_IFINDEX)
    only_bob.from_pod(ours / packets.tcp("FA"))
    assert {flow.state for flow in only_bob.flows().values()} == {FlowState.ESTABLISHED}


def test_a_reset_closes(only_bob: Datapath, ends: Ends) -> None:
    ours = packets.ethernet() / packets.ip(ends.alice, ends.service)
    only_bob.from_pod(ours / packets.tcp())
    only_bob.from_pod(ours / packets.tcp("R"))
    assert {flow.state for flow in only_bob.flows().values()} == {FlowState.CLOSING}


def test_directly_and_through_a_service_from_one_port(only_bob: Datapath, ends: Ends) -> None:
    direct = packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp(dport=POD_PORT)
    through = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp()
    assert ends_of(only_bob.from_pod(direct)) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)
    source, destination, port, _ = ends_of(only_bob.from_pod(through))
    assert (source, destination) == (ends.alice, ends.bob)
    assert port != CLIENT_PORT
    for client_port, expected in ((port, (ends.service, SERVICE_PORT)), (CLIENT_PORT, (ends.bob, POD_PORT))):
        answer = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / packets.tcp("SA", POD_PORT, client_port)
        back = only_bob.from_pod(answer, BOB_IFINDEX)
        assert ends_of(back) == (expected[0], ends.alice, expected[1], CLIENT_PORT)
        assert packets.has_right_checksums(back.raw)


# Checksums


@pytest.mark.parametrize("size", [0, 1, 2, 3, 64, 1399, 1400])
@pytest.mark.parametrize("protocol", BUILDERS)
def test_checksums_of_every_length(only_carol: Datapath, ends: Ends, protocol: str, size: int) -> None:
    data = bytes(range(256)) * 6
    sent = packets.ethernet() / packets.ip(ends.alice, ends.service) / BUILDERS[protocol](data=data[:size])
    assert packets.has_right_checksums(only_carol.from_pod(sent).raw)


def test_a_datagram_without_checksum_stays_so(only_carol: Datapath) -> None:
    datagram = packets.udp()
    datagram[UDP].chksum = 0
    ends = packets.V4
    only_carol.set_service(ends.service, SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 87)
    got = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / datagram)
    assert (got.packet[IP].dst, got.packet[UDP].chksum) == (ends.carol, 0)


def test_a_datagram_s_checksum_never_becomes_zero(only_carol: Datapath, ends: Ends) -> None:
    target = packets.ip(ends.alice, ends.carol) / packets.udp(dport=POD_PORT, data=b"\0\0")
    check = Ether(bytes(packets.ethernet() / target))[UDP].chksum
    data = check.to_bytes(2, "big")  # what makes the sum of the translated packet come out as zero
    got = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp(data=data))
    assert got.packet[UDP].chksum == 0xFFFF
    assert packets.has_right_checksums(got.raw)
