"""What is served where: NodePorts, marked addresses, blocks of addresses, and the clients that a service is for."""

import pytest
from scapy.all import ICMP, ICMPv6DestUnreach

from ebpfnet import abi
from ebpfnet.abi import BlockKind, DropReason, Hook, Mark, Outcome
from tests import packets
from tests.packets import BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath, Result
from tests.prog.serving import TRANSPORTS, calls, ends_of

NODE_PORT = 30080
SET = 0xABCDEF0123456789
PORTED = pytest.mark.parametrize("protocol", TRANSPORTS)


def any_of(ends: Ends) -> str:
    return "::" if ends.ipv6 else "0.0.0.0"


def rest(ends: Ends, length: int = 16) -> str:
    """Return the block of the service's address."""
    return "fd96::/64" if ends.ipv6 else f"10.96.0.0/{length}"


def refused(got: Result) -> bool:
    return got.outcome == Outcome.REJECT and packets.has_right_checksums(got.raw)


@pytest.fixture
def node_port(datapath: Datapath, ends: Ends) -> Datapath:
    """Serve a NodePort of each protocol with Bob, at the gateway's address."""
    serving.put_set(datapath, SET, [(ends.bob, POD_PORT)])
    for protocol, _ in TRANSPORTS.values():
        serving.put_frontend(datapath, any_of(ends), abi.Service(SET, SET), NODE_PORT, protocol)
    serving.mark(datapath, ends.gateway, Mark.OWN | Mark.NODEPORTS)
    return datapath


# NodePorts


@PORTED
def test_a_node_port_there_and_back(node_port: Datapath, ends: Ends, protocol: str) -> None:
    got = node_port.from_pod(calls(ends, protocol, port=NODE_PORT, to=ends.gateway))
    assert (got.outcome, got.ifindex) == (Outcome.POD, BOB_IFINDEX)
    assert ends_of(got) == (ends.alice, ends.bob, CLIENT_PORT, POD_PORT)
    answer = TRANSPORTS[protocol][1](sport=POD_PORT, dport=CLIENT_PORT)
    back = node_port.from_pod(packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / answer, BOB_IFINDEX)
    assert ends_of(back) == (ends.gateway, ends.alice, NODE_PORT, CLIENT_PORT)


def test_a_pod_reaches_itself_through_a_node_port(node_port: Datapath, ends: Ends) -> None:
    serving.put_set(node_port, SET, [(ends.alice, POD_PORT)])
    got = node_port.from_pod(calls(ends, "tcp", port=NODE_PORT, to=ends.gateway))
    assert ends_of(got) == (ends.gateway, ends.alice, CLIENT_PORT, POD_PORT)


@PORTED
@pytest.mark.parametrize("marks", [Mark.OWN, Mark(0)])
def test_a_node_port_elsewhere_is_the_network_s(node_port: Datapath, ends: Ends, protocol: str, marks: Mark) -> None:
    serving.mark(node_port, ends.gateway, marks)
    sent = calls(ends, protocol, port=NODE_PORT, to=ends.gateway)
    got = node_port.from_pod(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


def test_another_port_of_the_node_is_the_node_s(node_port: Datapath, ends: Ends) -> None:
    sent = calls(ends, "tcp", port=22, to=ends.gateway)
    assert node_port.from_pod(sent).raw == bytes(sent)


def test_a_node_answers_its_pings(node_port: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.gateway) / packets.echo(ends, NODE_PORT)
    assert node_port.from_pod(sent).raw == bytes(sent)


def test_the_address_s_own_frontend_comes_first(node_port: Datapath, ends: Ends) -> None:
    """An external IP may be a node's address, with a port in the NodePorts' range."""
    serving.put_set(node_port, 5, [(ends.carol, POD_PORT)])
    serving.put_frontend(node_port, ends.gateway, abi.Service(5, 5), NODE_PORT, 6)
    assert ends_of(node_port.from_pod(calls(ends, "tcp", port=NODE_PORT, to=ends.gateway))).destination == ends.carol


# A cluster IP's other ports


@PORTED
def test_an_undefined_port_is_refused(datapath: Datapath, ends: Ends, protocol: str) -> None:
    serving.mark(datapath, ends.service, Mark.CLUSTER_IP)
    got = datapath.from_pod(calls(ends, protocol, port=81))
    assert refused(got)
    assert got.reason == DropReason.UNDEFINED_PORT
    if protocol == "tcp":
        assert got.packet["TCP"].flags == "RA"
    elif ends.ipv6:
        assert got.packet[ICMPv6DestUnreach].code == 4
    else:
        assert (got.packet[ICMP].type, got.packet[ICMP].code) == (3, 3)
    assert not datapath.flows()


@pytest.mark.parametrize("program", ["from_pod", "from_pod_beside"])
def test_a_ping_of_a_cluster_ip_is_refused(datapath: Datapath, ends: Ends, program: str) -> None:
    serving.mark(datapath, ends.service, Mark.CLUSTER_IP)
    sent = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.echo(ends)
    got = datapath.run(program, sent, packets.ALICE_IFINDEX)
    assert refused(got)
    quoted = bytes((got.packet[ICMPv6DestUnreach] if ends.ipv6 else got.packet[ICMP]).payload)
    assert bytes(sent)[14:].startswith(quoted)


def test_a_defined_port_is_served_beside_the_mark(datapath: Datapath, ends: Ends) -> None:
    serving.mark(datapath, ends.lonely, Mark.CLUSTER_IP)
    assert datapath.from_pod(calls(ends, "tcp", to=ends.lonely)).outcome == Outcome.POD


# Blocks


@PORTED
@pytest.mark.parametrize("program", ["from_pod", "from_pod_beside"])
def test_an_unallocated_address_is_dropped(datapath: Datapath, ends: Ends, protocol: str, program: str) -> None:
    serving.put_block(datapath, rest(ends), BlockKind.SERVICES)
    nobody = "fd96::99" if ends.ipv6 else "10.96.9.9"
    got = datapath.run(program, calls(ends, protocol, to=nobody), packets.ALICE_IFINDEX)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.UNALLOCATED_ADDRESS)
    assert datapath.drops(Hook.FROM_POD, DropReason.UNALLOCATED_ADDRESS)


@PORTED
@pytest.mark.parametrize("program", ["from_pod", "from_pod_beside"])
def test_an_address_of_another_proxy_s_service_passes(
    datapath: Datapath, ends: Ends, protocol: str, program: str
) -> None:
    serving.put_block(datapath, rest(ends), BlockKind.SERVICES)
    theirs = "fd96::99" if ends.ipv6 else "10.96.9.9"
    serving.mark(datapath, theirs, Mark.FOREIGN)
    got = datapath.run(program, calls(ends, protocol, to=theirs), packets.ALICE_IFINDEX)
    assert got.outcome != Outcome.DROP
    assert ends_of(got).destination == theirs


@PORTED
def test_blocks_change_nothing_for_others(datapath: Datapath, ends: Ends, protocol: str) -> None:
    serving.put_block(datapath, rest(ends), BlockKind.SERVICES)
    serving.put_block(datapath, "fd01::/16" if ends.ipv6 else "10.1.0.0/16", BlockKind.PODS)
    for to in (ends.carol, ends.outside):
        sent = calls(ends, protocol, to=to)
        assert datapath.from_pod(sent).raw == bytes(sent)
    assert datapath.from_pod(calls(ends, protocol, to=ends.bob)).ifindex == BOB_IFINDEX


# Source ranges


@PORTED
def test_clients_of_a_range_are_served(datapath: Datapath, ends: Ends, protocol: str) -> None:
    serving.put_set(datapath, SET, [(ends.bob, POD_PORT)])
    service = abi.Service(SET, SET, ranges=SET)
    serving.put_frontend(datapath, ends.service, service, 81, TRANSPORTS[protocol][0])
    sent = calls(ends, protocol, port=81)
    for others in (SET + 1, SET & 0xFFFFFFFF):  # another service's range
        serving.put_range(datapath, others, "fd01::/16" if ends.ipv6 else "10.0.0.0/8")
    serving.put_range(datapath, SET, "fd01::11/128" if ends.ipv6 else "10.1.1.11/32")
    got = datapath.from_pod(sent)
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.SOURCE_RANGE)
    serving.put_range(datapath, SET, "fd01::/16" if ends.ipv6 else "10.0.0.0/8")
    assert ends_of(datapath.from_pod(sent)).destination == ends.bob


def test_an_empty_block_of_the_other_family_serves_nobody(datapath: Datapath) -> None:
    """::/0 is every IPv6 address, not every IPv4 address."""
    ends = packets.V6
    serving.put_set(datapath, SET, [(ends.bob, POD_PORT)])
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET, ranges=SET), 81, 6)
    serving.put_range(datapath, SET, "0.0.0.0/0")
    assert datapath.from_pod(calls(ends, "tcp", port=81)).reason == DropReason.SOURCE_RANGE


# Sets


def test_a_set_that_is_only_elsewhere_is_dropped(datapath: Datapath, ends: Ends) -> None:
    serving.put_set(datapath, SET, [], abi.SetFlag.ELSEWHERE)
    serving.put_frontend(datapath, ends.service, abi.Service(SET, SET), 81, 6)
    got = datapath.from_pod(calls(ends, "tcp", port=81))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_LOCAL_ENDPOINTS)


def test_a_pod_is_inside(datapath: Datapath, ends: Ends) -> None:
    serving.put_set(datapath, 5, [(ends.bob, POD_PORT)])
    serving.put_set(datapath, 6, [], abi.SetFlag.ELSEWHERE)
    serving.put_frontend(datapath, ends.service, abi.Service(5, 6), 81, 6)
    assert ends_of(datapath.from_pod(calls(ends, "tcp", port=81))).destination == ends.bob
