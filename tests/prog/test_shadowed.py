"""One client port that reaches one backend through a service and directly: each connection is answered as it was asked.

The direct one is what another node's service, or no service, made of it: nothing here translates it, and so nobody
would remember it.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.all import Packet

from ebpfnet import abi, clock
from ebpfnet.abi import FlowFlag, Outcome
from tests import packets
from tests.packets import BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT
from tests.prog.serving import TRANSPORTS, ends_of
from tests.prog.uplink import NODE_PORT, Uplink

PORT = 9090
HOUR = 3600 * 10**9
Build = Callable[..., Packet]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, uplink: Uplink) -> tuple[int, Build]:
    number, build = TRANSPORTS[request.param]
    uplink.serve(uplink.node, PORT, number)
    return number, build


def answer(transport: tuple[int, Build], sport: int, dport: int) -> Packet:
    number, build = transport
    return build(sport=sport, dport=dport, **({"flags": "SA"} if number == 6 else {}))


@pytest.mark.parametrize("first", ["node port", "direct"])
def test_a_process_of_this_node(uplink: Uplink, transport: tuple[int, Build], first: str) -> None:
    build, client = transport[1], uplink.ends.outside
    if first == "direct":
        uplink.come(build(dport=PORT))
        assert not uplink.datapath.flows()
    uplink.come(build(dport=NODE_PORT))
    direct = ends_of(uplink.come(build(dport=PORT)))
    assert (direct.source, direct.destination, direct.destination_port) == (client, uplink.node, PORT)
    assert direct.source_port != CLIENT_PORT
    assert ends_of(uplink.come(build(dport=PORT))) == direct
    back = uplink.go(answer(transport, PORT, direct.source_port), client)
    assert ends_of(back) == (uplink.node, client, PORT, CLIENT_PORT)
    assert packets.has_right_checksums(back.raw)
    back = uplink.go(answer(transport, PORT, CLIENT_PORT), client)
    assert ends_of(back) == (uplink.node, client, NODE_PORT, CLIENT_PORT)
    assert len(uplink.datapath.flows()) == 4


@pytest.mark.parametrize("other", ["port", "flow over", "middle"])
def test_what_is_alone_stays_unremembered(uplink: Uplink, other: str) -> None:
    uplink.serve(uplink.node, PORT)
    uplink.come(packets.tcp(dport=NODE_PORT))
    if other == "flow over":
        for key, flow in uplink.datapath.flows().items():
            long_ago = replace(flow, seen_ns=(clock.kernel_ns() - HOUR) % 2**64)
            uplink.datapath.tables["flows"].put(key.pack(), long_ago.pack())
    flags, sport = ("A" if other == "middle" else "S"), CLIENT_PORT + (other == "port")
    got = uplink.come(packets.tcp(flags, sport=sport, dport=PORT))
    assert (got.outcome, ends_of(got).source_port) == (Outcome.STACK, sport)
    assert len(uplink.datapath.flows()) == 2


def test_a_connection_that_closed_is_not_answered_for(uplink: Uplink) -> None:
    """Nothing is in the way of its port, and yet the answers must not be its own."""
    uplink.serve(uplink.node, PORT)
    uplink.come(packets.tcp(dport=NODE_PORT))
    uplink.come(packets.tcp("R", dport=NODE_PORT))
    assert ends_of(uplink.come(packets.tcp(dport=PORT))).source_port == CLIENT_PORT
    back = uplink.go(packets.tcp("SA", PORT, CLIENT_PORT), uplink.ends.outside)
    assert ends_of(back) == (uplink.node, uplink.ends.outside, PORT, CLIENT_PORT)


def test_a_pod_of_another_plugin(uplink: Uplink, transport: tuple[int, Build]) -> None:
    (number, build), ends, run = transport, uplink.ends, uplink.datapath.run
    wire = abi.Wire(BOB_IFINDEX, bytes.fromhex(BOB_MAC.replace(":", "")), 55)
    uplink.datapath.tables["pods"].put(packets.raw(ends.bob), abi.Pod(wire, 2).pack())
    uplink.serve("bob", protocol=number)
    uplink.come(build(dport=NODE_PORT))
    got = uplink.come(build(dport=POD_PORT), destination=ends.bob)
    direct = ends_of(got)
    assert (got.outcome, direct.source, direct.destination) == (Outcome.STACK, ends.outside, ends.bob)
    assert direct.source_port != CLIENT_PORT
    assert run("to_pod_beside", got.raw, BOB_IFINDEX).raw == got.raw
    for port, asked in ((CLIENT_PORT, (uplink.node, NODE_PORT)), (direct.source_port, (ends.bob, POD_PORT))):
        sent = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.outside) / answer(transport, POD_PORT, port)
        assert run("from_pod_beside", sent, BOB_IFINDEX).raw == bytes(sent)
        back = ends_of(run("to_network_beside", sent, BOB_IFINDEX, device=77))
        assert back == (asked[0], ends.outside, asked[1], CLIENT_PORT)


def test_answers_to_a_process_are_no_question(uplink: Uplink) -> None:
    """What from_network or another hook translated for a process of this node, and put in here."""
    uplink.serve("carol", protocol=17)
    uplink.go(packets.udp(dport=SERVICE_PORT), uplink.ends.service)
    got = uplink.come(packets.udp(POD_PORT, CLIENT_PORT), source=uplink.ends.carol)
    assert uplink.raw(got.packet).raw == got.raw
    assert all(flow.flags & FlowFlag.HOST for flow in uplink.datapath.flows().values())
    assert len(uplink.datapath.flows()) == 2
