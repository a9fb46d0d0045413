"""Direct server return at the node that a client calls: packets go on as they came, in a second header."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from scapy.all import ICMP, IP, Ether, ICMPv6PacketTooBig, IPv6, Packet

from ebpfnet import abi
from ebpfnet.abi import BlockKind, DropReason, FlowFlag, FlowState, Mark, Outcome
from tests import packets
from tests.packets import ALICE_IFINDEX, CLIENT_PORT, POD_PORT, SERVICE_PORT
from tests.prog import direct
from tests.prog.direct import BOTH, OVERHEAD, balancer, inside, is_direct, port_of, serve
from tests.prog.loaded import Result
from tests.prog.serving import TRANSPORTS, ip_of, mark, put_block, put_frontend
from tests.prog.uplink import NODE_PORT, OUR_MAC, REDIRECT, ROUTER_MAC, UPLINK, Uplink

Build = Callable[..., Packet]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def key_of(uplink: Uplink, protocol: int = 6, to: str = "", port: int = NODE_PORT) -> abi.Tuple:
    return packets.tuple_of(uplink.ends.outside, to or uplink.node, CLIENT_PORT, port, protocol)


def is_stood_in(uplink: Uplink, got: Result) -> bool:
    """Tell whether the node stands in for the client."""
    ends = (ip_of(got.packet).src, ip_of(got.packet).dst)
    return got.outcome == Outcome.NETWORK and ends == (uplink.node, uplink.ends.carol) and not is_direct(got)


@pytest.mark.parametrize("target", ["node port", "balancer"])
def test_the_second_header(uplink: Uplink, transport: str, target: str) -> None:
    """Byte for byte: the packet as it came, one hop further, and before it a header for the backend's node."""
    ends, (protocol, build) = uplink.ends, TRANSPORTS[transport]
    serve(uplink, "carol", protocol)
    to, port = (uplink.node, NODE_PORT) if target == "node port" else (balancer(ends), SERVICE_PORT)
    extra: Any = {"tc": 0xBB} if ends.ipv6 else {"tos": 0xBB}
    got = uplink.come(build(dport=port), destination=to, ttl=64, **extra)
    assert (got.outcome, got.ifindex, got.retval) == (Outcome.NETWORK, UPLINK, REDIRECT)
    inner = packets.ip(ends.outside, to, ttl=63, **extra) / build(dport=port)
    if ends.ipv6:
        outer = IPv6(src=uplink.node, dst=ends.carol, hlim=64, fl=POD_PORT, tc=0xB8)
    else:
        outer = IP(src=uplink.node, dst=ends.carol, ttl=64, id=POD_PORT, flags="DF", tos=0xB8)
    assert got.raw == bytes(Ether(src=OUR_MAC, dst=ROUTER_MAC) / outer / inner)
    flows = uplink.datapath.flows()
    assert list(flows) == [key_of(uplink, protocol, to, port)]
    flow = flows[key_of(uplink, protocol, to, port)]
    assert flow.flags == FlowFlag.NAT | FlowFlag.DIRECT
    assert flow.to == packets.tuple_of(ends.outside, ends.carol, CLIENT_PORT, POD_PORT, protocol)


def test_a_backend_here_needs_no_second_header(uplink: Uplink) -> None:
    serve(uplink, "alice")
    got = uplink.come(packets.tcp(dport=NODE_PORT))
    assert (got.outcome, got.ifindex, len(uplink.datapath.flows())) == (Outcome.POD, ALICE_IFINDEX, 2)
    assert not any(flow.flags & FlowFlag.DIRECT for flow in uplink.datapath.flows().values())


def test_without_the_annotation_the_node_stands_in(uplink: Uplink) -> None:
    for marks in (Mark(0), Mark.TAKEN):
        uplink.datapath.clear()
        serve(uplink, "carol", marks=marks)
        assert is_stood_in(uplink, uplink.come(packets.tcp(dport=NODE_PORT)))


def test_an_address_that_no_node_object_has(uplink: Uplink) -> None:
    """Other nodes do not know it for this one's, so answers come back here."""
    serve(uplink, "carol")
    mark(uplink.datapath, uplink.node, Mark.OWN | Mark.NODEPORTS)
    assert is_stood_in(uplink, uplink.come(packets.tcp(dport=NODE_PORT)))


def test_pods_of_other_nodes_are_not_clients_outside(uplink: Uplink) -> None:
    serve(uplink, "carol")
    put_block(uplink.datapath, "fd02::/64" if uplink.ends.ipv6 else "10.1.2.0/24", BlockKind.PODS)
    source = "fd02::77" if uplink.ends.ipv6 else "10.1.2.77"
    assert is_stood_in(uplink, uplink.come(packets.tcp(dport=NODE_PORT), source=source))


def test_nodes_are_not_clients_outside(uplink: Uplink) -> None:
    """The backend may be on that very node."""
    serve(uplink, "carol")
    got = uplink.come(packets.tcp(dport=NODE_PORT), source=direct.PEER[uplink.ends.ipv6])
    assert is_stood_in(uplink, got)


def test_without_an_address_of_the_node(uplink: Uplink) -> None:
    serve(uplink, "carol")
    uplink.set_node(address="")
    got = uplink.come(packets.tcp(dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_SOURCE_ADDRESS)


def test_a_backend_that_no_route_leads_to(uplink: Uplink) -> None:
    serve(uplink, uplink.ends.gateway)
    subprocess.run(["ip", "route", "add", "blackhole", uplink.ends.gateway], check=True)
    got = uplink.come(packets.tcp(dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.DROP, DropReason.NO_ROUTE)


def test_the_client_s_next_packet_establishes(uplink: Uplink) -> None:
    """Answers are never seen; a SYN that is sent again says nothing."""
    serve(uplink, "carol")
    states = []
    for flags in ("S", "S", "A", "PA", "FA", "A", "R"):
        assert is_direct(uplink.come(packets.tcp(flags, dport=NODE_PORT)))
        flow = uplink.datapath.flow(key_of(uplink))
        assert flow
        states.append(flow.state)
    new, established, half = FlowState.NEW, FlowState.ESTABLISHED, FlowState.HALF_CLOSED
    assert states == [new, new, established, established, half, half, FlowState.CLOSING]
    assert len(uplink.datapath.flows()) == 1


def test_the_second_datagram_establishes(uplink: Uplink) -> None:
    serve(uplink, "carol", 17)
    for state in (FlowState.NEW, FlowState.ESTABLISHED):
        uplink.come(packets.udp(dport=NODE_PORT))
        flow = uplink.datapath.flow(key_of(uplink, 17))
        assert flow
        assert flow.state == state


def test_a_new_connection_from_the_port_of_one_that_ended(uplink: Uplink) -> None:
    serve(uplink, "carol")
    for flags in ("S", "A", "FA"):
        uplink.come(packets.tcp(flags, dport=NODE_PORT))
    serve(uplink, "alice")
    assert uplink.come(packets.tcp(dport=NODE_PORT)).outcome == Outcome.POD


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_what_began_keeps_its_way(uplink: Uplink, transport: str) -> None:
    """The annotation comes and goes; connections stay, and new ones follow it."""
    protocol, build = TRANSPORTS[transport]
    fields = {"flags": "A"} if protocol == 6 else {}
    serve(uplink, "carol", protocol)
    uplink.come(build(dport=NODE_PORT))
    assert is_direct(uplink.come(build(dport=NODE_PORT, **fields)))
    serve(uplink, "carol", protocol, Mark(0))
    assert is_direct(uplink.come(build(dport=NODE_PORT, **fields)))
    assert is_stood_in(uplink, uplink.come(build(dport=NODE_PORT, sport=CLIENT_PORT + 1)))
    serve(uplink, "carol", protocol)
    assert is_stood_in(uplink, uplink.come(build(dport=NODE_PORT, sport=CLIENT_PORT + 1, **fields)))
    assert is_direct(uplink.come(build(dport=NODE_PORT, sport=CLIENT_PORT + 2)))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_what_may_have_been_refused_chooses_anew(uplink: Uplink, transport: str) -> None:
    """The other node may have lost the annotation before this one did."""
    protocol, build = TRANSPORTS[transport]
    serve(uplink, "carol", protocol)
    assert is_direct(uplink.come(build(dport=NODE_PORT)))
    serve(uplink, "carol", protocol, Mark(0))
    assert is_stood_in(uplink, uplink.come(build(dport=NODE_PORT)))


def test_a_backend_that_is_gone_is_refused(uplink: Uplink) -> None:
    serve(uplink, "carol")
    uplink.come(packets.tcp(dport=NODE_PORT))
    for key, flow in uplink.datapath.flows().items():
        uplink.datapath.tables["flows"].put(key.pack(), replace(flow, flags=flow.flags | FlowFlag.GONE).pack())
    got = uplink.come(packets.tcp("A", dport=NODE_PORT))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.BACKEND_GONE)
    assert not uplink.datapath.flows()


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_with_the_second_header(uplink: Uplink, fits: bool) -> None:
    """The client hears what there is room for, from the service."""
    ends, overhead = uplink.ends, OVERHEAD[uplink.ends.ipv6]
    serve(uplink, "carol", 17)
    room = 1500 - overhead - (40 if ends.ipv6 else 20) - 8
    got = uplink.come(packets.udp(dport=NODE_PORT, data=bytes(room + (not fits))), ttl=64)
    if fits:
        assert (got.outcome, len(got.raw)) == (Outcome.NETWORK, 14 + 1500)
        return
    assert (got.outcome, got.reason, ip_of(got.packet).src) == (Outcome.REJECT, DropReason.TOO_BIG, uplink.node)
    told = got.packet[ICMPv6PacketTooBig].mtu if ends.ipv6 else got.packet[ICMP].nexthopmtu
    assert (told, packets.has_right_checksums(got.raw)) == (1500 - overhead, True)


def test_a_time_to_live_that_ends_here(uplink: Uplink) -> None:
    serve(uplink, "carol")
    got = uplink.come(packets.tcp(dport=NODE_PORT), ttl=1)
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.TIME_EXCEEDED)


def test_a_train_whose_segments_do_not_fit(uplink: Uplink) -> None:
    """What becomes of trains that fit only real devices show: the kernel asks what kind of train it is."""
    serve(uplink, "carol")
    uplink.come(packets.tcp(dport=NODE_PORT))
    header = packets.ip(uplink.ends.outside, uplink.node)
    train = Ether(src=ROUTER_MAC, dst=OUR_MAC) / header / packets.tcp("A", dport=NODE_PORT, data=bytes(2900))
    got = uplink.datapath.run("from_network", train, UPLINK, gso=(2, 1450), device=UPLINK)
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.TOO_BIG)


def test_fragments_go_whole(uplink: Uplink) -> None:
    serve(uplink, "carol", 17)
    datagram = packets.udp(dport=NODE_PORT, data=bytes(2000))
    payload = bytes(packets.ip(uplink.ends.outside, uplink.node) / datagram)[40 if uplink.ends.ipv6 else 20 :]
    pieces = packets.pieces(uplink.ends.outside, uplink.node, payload, 1200)
    for piece in pieces:
        got = uplink.raw(Ether(src=ROUTER_MAC, dst=OUR_MAC) / piece)
        assert (is_direct(got), port_of(got), ip_of(got.packet).dst) == (True, POD_PORT, uplink.ends.carol)
        assert bytes(inside(got))[40 if uplink.ends.ipv6 else 20 :] == bytes(piece)[40 if uplink.ends.ipv6 else 20 :]


def test_an_error_about_an_answer_goes_to_the_backend_s_node(uplink: Uplink, transport: str) -> None:
    """A path to the client that is narrower than the backend thinks: only this node hears of it."""
    protocol, build = TRANSPORTS[transport]
    ends = uplink.ends
    serve(uplink, "carol", protocol)
    uplink.come(build(dport=NODE_PORT))
    answer = packets.ip(uplink.node, ends.outside) / build(sport=NODE_PORT, dport=CLIENT_PORT)
    router = "2001:db8:5::5" if ends.ipv6 else "203.0.113.5"
    got = uplink.come(packets.too_big(ends, answer), source=router, ttl=64)
    assert (is_direct(got), port_of(got), ip_of(got.packet).dst) == (True, POD_PORT, ends.carol)
    expected = packets.ip(router, uplink.node, ttl=63) / packets.too_big(ends, answer)
    assert bytes(inside(got)) == bytes(expected)


def test_a_frontend_of_which_nothing_is_known_any_more(uplink: Uplink) -> None:
    """What began goes on when its service is deleted, as with a node that stands in."""
    serve(uplink, "carol", 17)
    assert is_direct(uplink.come(packets.udp(dport=NODE_PORT)))
    key = abi.Frontend(packets.raw(direct.anywhere(uplink.ends)), NODE_PORT, 17)
    uplink.datapath.tables["services"].delete(key.pack())
    assert is_direct(uplink.come(packets.udp(dport=NODE_PORT)))


def test_the_answers_key_is_nobody_s(uplink: Uplink) -> None:
    """Another connection of the client has it, straight to the backend; neither knows of the other."""
    serve(uplink, "carol")
    uplink.come(packets.tcp(dport=NODE_PORT))
    put_frontend(uplink.datapath, balancer(uplink.ends), abi.Service(8006, 8006, marks=BOTH), 81, 6)
    got = uplink.come(packets.tcp(dport=81), destination=balancer(uplink.ends))
    assert (is_direct(got), inside(got).payload.sport) == (True, CLIENT_PORT)
    assert len(uplink.datapath.flows()) == 2
