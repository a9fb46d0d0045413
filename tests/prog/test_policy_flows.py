"""Connections that are known, when policies change; and the ways around a policy that others were found to have."""

import dataclasses

import pytest
from scapy.all import IP, TCP, UDP, IPv6, IPv6ExtHdrFragment, Packet, Raw

from ebpfnet import abi
from ebpfnet.abi import Direction, DropReason, Outcome, Verdict
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog.loaded import Datapath, Result
from tests.prog.policies import Policies
from tests.prog.uplink import Uplink

INGRESS, EGRESS = Direction
ALLOW, DENY, AUDIT = Verdict.ALLOW, Verdict.DENY, Verdict.AUDIT
WIRES = {"client": ALICE_IFINDEX, "server": BOB_IFINDEX}


def asks(ends: Ends, flags: str = "A") -> Packet:
    return packets.ethernet() / packets.ip(ends.alice, ends.bob, ttl=64) / packets.tcp(flags, dport=POD_PORT)


def answers(ends: Ends, flags: str = "A") -> Packet:
    segment = packets.tcp(flags, POD_PORT, CLIENT_PORT)
    return packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice, ttl=64) / segment


def outside(ends: Ends, payload: Packet, source: str = "") -> Packet:
    header = packets.ip(source or ends.outside, ends.alice, ttl=64)
    return packets.ethernet(packets.STRANGER_MAC, packets.UPLINK_MAC) / header / payload


def connect(datapath: Datapath, ends: Ends) -> None:
    """Let Alice and Bob talk."""
    assert datapath.from_pod(asks(ends, "S")).outcome == Outcome.POD
    assert datapath.from_pod(answers(ends, "SA"), BOB_IFINDEX).outcome == Outcome.POD


def stopped(got: Result, reason: DropReason) -> bool:
    return (got.outcome, got.reason) == (Outcome.DROP, reason)


def test_who_opens_while_groups_change_is_judged_all_the_same(policies: Policies, ends: Ends):
    """What is odd says that the group that was found on the way may be the one of before: it is looked up again."""
    datapath = policies.datapath
    for _ in range(2):  # odd, and even again
        policies.bump(abi.GENERATION_OF_ALL)
        datapath.clear()
        connect(datapath, ends)
        policies.isolate(ends.bob, INGRESS)
        policies.bump(BOB_IFINDEX)
        assert stopped(datapath.from_pod(asks(ends)), DropReason.POLICY_INGRESS)
        datapath.clear()
        policies.isolate(ends.bob, INGRESS)
        assert stopped(datapath.from_pod(asks(ends, "S")), DropReason.POLICY_INGRESS)


@pytest.mark.parametrize("served", [False, True], ids=["directly", "through a service"])
def test_a_connection_that_is_older_than_its_pod_is_judged(policies: Policies, ends: Ends, served: bool):
    """It began when nobody knew of the pod, and the host's stack leads it there since."""
    datapath = policies.datapath
    bob = packets.raw(ends.bob)
    known = policies.tables["pods"].get(bob)
    assert known
    policies.tables["pods"].delete(bob)
    if served:
        datapath.set_service(ends.service, SERVICE_PORT, 6, [(ends.bob, POD_PORT)], 7000)
    target, port = (ends.service, SERVICE_PORT) if served else (ends.bob, POD_PORT)
    question = packets.ethernet() / packets.ip(ends.alice, target, ttl=64) / packets.tcp("S", dport=port)
    assert datapath.from_pod(question).outcome == Outcome.STACK
    assert datapath.to_pod(asks(ends, "S"), ALICE_IFINDEX).outcome == Outcome.STACK
    policies.tables["pods"].put(bob, known)
    policies.isolate(ends.bob, INGRESS)
    for _ in range(2):
        assert stopped(datapath.to_pod(asks(ends), ALICE_IFINDEX), DropReason.POLICY_INGRESS)
    policies.rule(7, INGRESS, ALLOW)
    assert datapath.to_pod(asks(ends), ALICE_IFINDEX).outcome == Outcome.STACK


@pytest.mark.parametrize("side", WIRES)
def test_both_directions_stop_when_a_policy_comes(policies: Policies, ends: Ends, side: str):
    datapath = policies.datapath
    connect(datapath, ends)
    if side == "client":
        policies.isolate(ends.alice, EGRESS)
    else:
        policies.isolate(ends.bob, INGRESS)
    reason = DropReason.POLICY_EGRESS if side == "client" else DropReason.POLICY_INGRESS
    assert datapath.from_pod(asks(ends)).outcome == Outcome.POD, "before its generation changes nothing is asked"
    policies.bump(WIRES[side])
    before = {key: flow.seen_ns for key, flow in datapath.flows().items()}
    assert stopped(datapath.from_pod(answers(ends), BOB_IFINDEX), reason)
    assert stopped(datapath.from_pod(asks(ends)), reason)
    assert policies.last_sample().rule == 100
    assert {key: flow.seen_ns for key, flow in datapath.flows().items()} == before
    policies.rule(7, EGRESS if side == "client" else INGRESS, ALLOW)
    assert datapath.from_pod(answers(ends), BOB_IFINDEX).outcome == Outcome.POD
    flows = datapath.flows().values()
    assert len({flow.generation for flow in flows}) == 1, "one packet tells both directions"
    assert {(flow.egress_rule, flow.ingress_rule) for flow in flows} == {(101, 0) if side == "client" else (0, 101)}
    assert policies.hits(101).allowed == 0, "it is no new connection"


def test_replies_are_not_judged_as_questions(policies: Policies, ends: Ends):
    connect(policies.datapath, ends)
    policies.isolate(ends.alice, INGRESS, 7)
    policies.isolate(ends.bob, EGRESS, 8)
    for wire in WIRES.values():
        policies.bump(wire)
    assert policies.datapath.from_pod(answers(ends), BOB_IFINDEX).outcome == Outcome.POD
    assert policies.datapath.from_pod(asks(ends)).outcome == Outcome.POD


@pytest.mark.parametrize("lost", ["question", "answers"])
def test_the_question_is_judged_also_when_one_half_was_evicted(policies: Policies, ends: Ends, lost: str):
    datapath = policies.datapath
    connect(datapath, ends)
    key = packets.tuple_of(ends.alice, ends.bob, CLIENT_PORT, POD_PORT, 6)
    policies.tables["flows"].delete_batch([(key if lost == "question" else key.reverse()).pack()])
    policies.isolate(ends.bob, INGRESS)
    policies.bump(BOB_IFINDEX)
    got = datapath.from_pod(answers(ends), BOB_IFINDEX) if lost == "question" else datapath.from_pod(asks(ends))
    assert stopped(got, DropReason.POLICY_INGRESS)


def test_graceful_leaves_what_is_open(policies: Policies, ends: Ends):
    datapath = policies.datapath
    connect(datapath, ends)
    policies.isolate(ends.bob, INGRESS, graceful=True)
    policies.bump(BOB_IFINDEX)
    assert datapath.from_pod(answers(ends), BOB_IFINDEX).outcome == Outcome.POD
    assert datapath.from_pod(asks(ends)).outcome == Outcome.POD
    assert policies.hits(100) == abi.Hits(0, 0, 0)
    other = packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp(sport=1, dport=POD_PORT)
    assert stopped(datapath.from_pod(other), DropReason.POLICY_INGRESS)


def test_one_side_s_grace_is_not_the_other_s(policies: Policies, ends: Ends):
    connect(policies.datapath, ends)
    policies.isolate(ends.bob, INGRESS, 7)
    policies.isolate(ends.alice, EGRESS, 8, graceful=True)
    policies.bump(BOB_IFINDEX)
    assert stopped(policies.datapath.from_pod(asks(ends)), DropReason.POLICY_INGRESS)


def test_a_known_connection_counts_once_in_audit(policies: Policies, ends: Ends):
    connect(policies.datapath, ends)
    policies.select(ends.bob, 7)
    policies.rule(7, INGRESS, AUDIT)
    for _ in range(3):
        policies.bump(BOB_IFINDEX)
        assert policies.datapath.from_pod(asks(ends)).outcome == Outcome.POD
    assert policies.hits(102) == abi.Hits(0, 0, 1)


def test_through_a_service(policies: Policies, ends: Ends):
    datapath = policies.datapath
    datapath.set_service(ends.service, SERVICE_PORT, 6, [(ends.bob, POD_PORT)], 9)
    first = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.tcp()
    assert datapath.from_pod(first).outcome == Outcome.POD
    policies.select(ends.bob, 7)
    policies.peer(ends.alice, 3)
    policies.rule(7, INGRESS, DENY)
    policies.rule(7, INGRESS, DENY, 3, [(POD_PORT, 16, 6, ALLOW)])
    policies.bump(BOB_IFINDEX)
    assert datapath.from_pod(answers(ends, "SA"), BOB_IFINDEX).outcome == Outcome.POD
    policies.peer(ends.alice, 4)
    policies.bump(BOB_IFINDEX)
    assert stopped(datapath.from_pod(answers(ends), BOB_IFINDEX), DropReason.POLICY_INGRESS)
    assert stopped(datapath.from_pod(first), DropReason.POLICY_INGRESS)


def test_a_hairpin(policies: Policies, ends: Ends):
    datapath = policies.datapath
    first = packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.tcp()
    assert datapath.from_pod(first).outcome == Outcome.POD
    policies.isolate(ends.alice, INGRESS)
    policies.peer(ends.alice, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    policies.bump(ALICE_IFINDEX)
    answer = packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    assert datapath.from_pod(answer).outcome == Outcome.POD
    policies.peer(ends.alice, 4)
    policies.bump(ALICE_IFINDEX)
    assert stopped(datapath.from_pod(answer), DropReason.POLICY_INGRESS)


def test_a_client_outside(uplink: Uplink):
    policies, ends = Policies(uplink.datapath), uplink.ends
    uplink.serve("bob")
    assert uplink.come(packets.tcp(dport=30080)).outcome == Outcome.POD
    policies.isolate(ends.bob, INGRESS)
    policies.bump(BOB_IFINDEX)
    answer = packets.tcp("SA", POD_PORT, CLIENT_PORT)
    sent = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.outside) / answer
    assert stopped(uplink.datapath.from_pod(sent, BOB_IFINDEX), DropReason.POLICY_INGRESS)
    assert stopped(uplink.come(packets.tcp("A", dport=30080)), DropReason.POLICY_INGRESS)
    policies.peer(ends.outside, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    assert uplink.come(packets.tcp("A", dport=30080)).outcome == Outcome.POD


def test_what_came_through_the_stack_stops_too(policies: Policies, ends: Ends):
    first = outside(ends, packets.tcp("S", dport=POD_PORT))
    assert policies.datapath.to_pod(first).outcome == Outcome.STACK
    policies.isolate(ends.alice, INGRESS)
    policies.bump(ALICE_IFINDEX)
    assert stopped(policies.datapath.to_pod(outside(ends, packets.tcp("A", dport=POD_PORT))), DropReason.POLICY_INGRESS)


def test_an_error_passes_while_its_connection_may(policies: Policies, ends: Ends):
    datapath = policies.datapath
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.udp(dport=POD_PORT)
    policies.isolate(ends.alice, INGRESS)
    assert datapath.from_pod(sent).outcome == Outcome.STACK
    error = outside(ends, packets.unreachable(ends, sent[IPv6] if ends.ipv6 else sent[IP]), ends.carol)
    assert datapath.from_network(error).outcome == Outcome.POD
    policies.rule(7, EGRESS, DENY)
    policies.bump(ALICE_IFINDEX)
    assert stopped(datapath.from_network(error), DropReason.FLOW_UNKNOWN)
    assert stopped(datapath.to_pod(error), DropReason.FLOW_UNKNOWN)
    assert stopped(datapath.from_pod(sent), DropReason.POLICY_EGRESS)
    assert stopped(datapath.from_network(error), DropReason.FLOW_UNKNOWN)
    policies.rule(7, EGRESS, ALLOW)
    assert datapath.from_pod(sent).outcome == Outcome.STACK
    assert datapath.from_network(error).outcome == Outcome.POD


def test_an_error_of_a_pod_s_own_stops_with_its_connection(policies: Policies, ends: Ends):
    asked = asks(ends, "S")
    policies.datapath.from_pod(asked)
    about = packets.unreachable(ends, asked[IPv6] if ends.ipv6 else asked[IP])
    error = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / about
    assert policies.datapath.from_pod(error, BOB_IFINDEX).outcome == Outcome.POD
    policies.isolate(ends.bob, INGRESS)
    policies.bump(BOB_IFINDEX)
    assert stopped(policies.datapath.from_pod(error, BOB_IFINDEX), DropReason.FLOW_UNKNOWN)


def test_the_middle_of_a_connection_that_nobody_knows_is_judged(policies: Policies, ends: Ends):
    policies.isolate(ends.bob, INGRESS)
    assert stopped(policies.datapath.from_pod(asks(ends, "A")), DropReason.POLICY_INGRESS)
    policies.isolate(ends.alice, INGRESS)
    stray = outside(ends, packets.tcp("A", SERVICE_PORT, CLIENT_PORT))
    assert stopped(policies.datapath.from_network(stray), DropReason.POLICY_INGRESS)


def test_a_connection_whose_backend_is_gone_is_refused_as_ever(policies: Policies, ends: Ends):
    connect(policies.datapath, ends)
    for key, flow in policies.datapath.flows().items():
        gone = dataclasses.replace(flow, flags=flow.flags | abi.FlowFlag.GONE)
        policies.tables["flows"].put(key.pack(), gone.pack())
    policies.isolate(ends.bob, INGRESS)
    policies.bump(BOB_IFINDEX)
    got = policies.datapath.from_pod(asks(ends))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.BACKEND_GONE)


# Ways around


@pytest.mark.parametrize("program", ["from_network", "to_pod"])
def test_a_pod_s_own_address_from_outside_is_no_pass(policies: Policies, ends: Ends, program: str):
    """A neighbour who sends with the address of a pod here gets no further than with his own."""
    policies.isolate(ends.alice, INGRESS)
    policies.peer(ends.bob, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    spoofed = outside(ends, packets.tcp(dport=POD_PORT), ends.bob)
    assert stopped(policies.datapath.run(program, spoofed), DropReason.SPOOFED_ADDRESS)
    assert policies.datapath.to_pod(spoofed, BOB_IFINDEX).outcome == Outcome.STACK


def test_the_node_s_address_from_outside_is_no_pass(uplink: Uplink):
    policies, ends = Policies(uplink.datapath), uplink.ends
    policies.isolate(ends.alice, INGRESS)
    got = uplink.come(packets.tcp(dport=POD_PORT), uplink.node, ends.alice)
    assert stopped(got, DropReason.POLICY_INGRESS)


@pytest.mark.parametrize("kind", ["echo", "answer"])
def test_a_ping_is_no_way_around(policies: Policies, ends: Ends, kind: str):
    policies.isolate(ends.alice, INGRESS)
    ping = packets.echo(ends, answer=kind == "answer")
    assert stopped(policies.datapath.from_network(outside(ends, ping)), DropReason.POLICY_INGRESS)


def test_an_error_about_nothing_is_no_way_around(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, INGRESS)
    quoted = packets.ip(ends.alice, ends.outside) / packets.udp()
    error = outside(ends, packets.unreachable(ends, quoted))
    assert stopped(policies.datapath.from_network(error), DropReason.FLOW_UNKNOWN)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_fragments_follow_the_verdict_of_their_first(policies: Policies, ends: Ends, protocol: str):
    policies.select(ends.alice, 7)
    number = 6 if protocol == "tcp" else 17
    policies.rule(7, INGRESS, DENY, ports=[(POD_PORT, 16, number, ALLOW)])
    for port, outcome in ((POD_PORT, Outcome.POD), (POD_PORT + 1, Outcome.DROP)):
        data = bytes(64)
        whole = UDP(sport=1, dport=port) / Raw(data) if protocol == "udp" else TCP(sport=1, dport=port) / Raw(data)
        header = packets.ip(ends.outside, ends.alice) / whole
        payload = bytes(header[whole.__class__])
        for piece in packets.pieces(ends.outside, ends.alice, payload, 32, number):
            head = packets.ethernet(packets.STRANGER_MAC, packets.UPLINK_MAC)
            assert policies.datapath.from_network(head / piece).outcome == outcome
    assert policies.hits(100).denied == 3, "each fragment is a packet that was dropped"


def test_a_first_fragment_without_its_ports_is_no_way_around(policies: Policies, ends: Ends):
    """RFC 1858: what does not hold the header that the verdict hangs on is not let through."""
    policies.select(ends.alice, 7)
    policies.rule(7, INGRESS, DENY, ports=[(POD_PORT, 16, 6, ALLOW)])
    whole = bytes(TCP(sport=1, dport=POD_PORT) / Raw(bytes(32)))
    head = packets.ethernet(packets.STRANGER_MAC, packets.UPLINK_MAC)
    first, second, *_ = packets.pieces(ends.outside, ends.alice, whole, 8, 6)
    assert stopped(policies.datapath.from_network(head / first), DropReason.TRUNCATED)
    assert stopped(policies.datapath.from_network(head / second), DropReason.FRAGMENT_UNKNOWN)


def test_an_atomic_fragment_is_judged_as_the_packet_that_it_is(policies: Policies):
    ends = packets.V6
    policies.isolate(ends.alice, INGRESS)
    whole = IPv6(src=ends.outside, dst=ends.alice) / IPv6ExtHdrFragment(nh=6) / TCP(dport=POD_PORT)
    head = packets.ethernet(packets.STRANGER_MAC, packets.UPLINK_MAC)
    assert stopped(policies.datapath.from_network(head / whole), DropReason.POLICY_INGRESS)


def test_one_family_s_rules_are_not_the_other_s(policies: Policies):
    """An IPv4 block says nothing of IPv6, 0.0.0.0/0 included."""
    policies.select(packets.V6.alice, 7)
    policies.isolate(packets.V4.alice, EGRESS)
    policies.block("0.0.0.0/0", 3)
    policies.rule(7, EGRESS, ALLOW, 3)
    for ends, outcome in ((packets.V4, Outcome.STACK), (packets.V6, Outcome.DROP)):
        sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.tcp()
        assert policies.datapath.from_pod(sent).outcome == outcome
