"""New connections: which rule decides, on every path, and what is said of it."""

import pytest
from scapy.all import Ether, Packet

from ebpfnet import abi
from ebpfnet.abi import Direction, DropReason, Hook, Outcome, Verdict
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, CLIENT_PORT, POD_PORT, SERVICE_PORT, UPLINK_MAC, Ends
from tests.prog.loaded import Datapath, Result
from tests.prog.policies import Policies
from tests.prog.uplink import Uplink

INGRESS, EGRESS = Direction
ALLOW, DENY, AUDIT = Verdict.ALLOW, Verdict.DENY, Verdict.AUDIT
NOBODY = 0


def ask(datapath: Datapath, ends: Ends, to: str = "", transport: Packet | None = None) -> Result:
    """Let Alice call Bob, or another address."""
    first = packets.tcp(dport=POD_PORT) if transport is None else transport
    return datapath.from_pod(packets.ethernet() / packets.ip(ends.alice, to or ends.bob, ttl=64) / first)


def comes(ends: Ends, transport: Packet, source: str = "", to: str = "") -> Packet:
    """Return a packet from outside to Alice."""
    header = packets.ip(source or ends.outside, to or ends.alice, ttl=64)
    return packets.ethernet(packets.STRANGER_MAC, UPLINK_MAC) / header / transport


def opening(transport: str, ends: Ends) -> Packet:
    """Return the first packet of a connection of some kind."""
    return {
        "tcp": packets.tcp(dport=POD_PORT),
        "udp": packets.udp(dport=POD_PORT),
        "sctp": packets.sctp(),
        "echo": packets.echo(ends),
    }[transport]


def stopped(got: Result, reason: DropReason) -> bool:
    return (got.outcome, got.reason) == (Outcome.DROP, reason)


def test_policies_of_one_direction_say_nothing_of_the_other(policies: Policies, ends: Ends):
    policies.isolate(ends.bob, EGRESS)
    assert ask(policies.datapath, ends).outcome == Outcome.POD
    assert not list(policies.tables["rule_hits"].items())


@pytest.mark.parametrize("transport", ["tcp", "udp", "sctp", "echo"])
def test_egress_of_the_sender(policies: Policies, ends: Ends, transport: str):
    first = opening(transport, ends)
    policies.isolate(ends.alice, EGRESS)
    for to in (ends.bob, ends.carol, ends.outside):
        assert stopped(ask(policies.datapath, ends, to, first), DropReason.POLICY_EGRESS)
    assert not policies.datapath.flows()
    assert policies.hits(100) == abi.Hits(0, 3, 0)


@pytest.mark.parametrize("transport", ["tcp", "udp", "sctp", "echo"])
def test_ingress_of_a_pod_here_is_judged_where_it_is_sent(policies: Policies, ends: Ends, transport: str):
    first = opening(transport, ends)
    policies.isolate(ends.bob, INGRESS)
    assert stopped(ask(policies.datapath, ends, transport=first), DropReason.POLICY_INGRESS)
    assert ask(policies.datapath, ends, ends.carol, first).outcome == Outcome.STACK


def test_ingress_from_the_network(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, INGRESS)
    got = policies.datapath.from_network(comes(ends, packets.tcp(dport=POD_PORT)))
    assert stopped(got, DropReason.POLICY_INGRESS)
    policies.peer(ends.outside, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    assert policies.datapath.from_network(comes(ends, packets.tcp(dport=POD_PORT))).outcome == Outcome.POD
    assert (policies.hits(100), policies.hits(101)) == (abi.Hits(0, 1, 0), abi.Hits(1, 0, 0))


def test_the_real_backend_is_judged_behind_a_service(policies: Policies, ends: Ends):
    protocol = abi.Protocol.TCP
    policies.datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.bob, POD_PORT)], 9)
    policies.isolate(ends.alice, EGRESS)
    policies.peer(ends.service, 3)
    policies.rule(7, EGRESS, ALLOW, 3, identity=5)
    to_service = packets.tcp(dport=SERVICE_PORT)
    assert stopped(ask(policies.datapath, ends, ends.service, to_service), DropReason.POLICY_EGRESS)
    policies.peer(ends.bob, 4)
    policies.rule(7, EGRESS, DENY, 4, [(POD_PORT, 16, 6, ALLOW)])
    assert ask(policies.datapath, ends, ends.service, to_service).outcome == Outcome.POD
    assert policies.hits(200).allowed == 1


def test_a_pod_that_reaches_itself_through_a_service_is_its_own_peer(policies: Policies, ends: Ends):
    lonely = packets.tcp(dport=SERVICE_PORT)
    policies.isolate(ends.alice, INGRESS)
    assert stopped(ask(policies.datapath, ends, ends.lonely, lonely), DropReason.POLICY_INGRESS)
    policies.peer(ends.alice, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    assert ask(policies.datapath, ends, ends.lonely, lonely).outcome == Outcome.POD


def test_behind_a_node_port_the_client_is_the_peer(uplink: Uplink):
    policies, ends = Policies(uplink.datapath), uplink.ends
    uplink.serve("bob")
    policies.isolate(ends.bob, INGRESS)
    first = packets.tcp(dport=30080)
    assert stopped(uplink.come(first), DropReason.POLICY_INGRESS)
    policies.peer(ends.outside, 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    assert uplink.come(first).outcome == Outcome.POD
    uplink.serve("carol")
    policies.rule(7, INGRESS, DENY, 3)
    assert uplink.come(packets.tcp(dport=30080, sport=41_000)).outcome == Outcome.NETWORK


def test_what_comes_through_the_stack(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, INGRESS)
    first = comes(ends, packets.tcp(dport=POD_PORT))
    assert stopped(policies.datapath.to_pod(first), DropReason.POLICY_INGRESS)
    assert policies.last_sample().hook == Hook.TO_POD
    policies.block("2001:db8::/32" if ends.ipv6 else "192.0.2.0/24", 3)
    policies.rule(7, INGRESS, ALLOW, 3)
    assert policies.datapath.to_pod(first).outcome == Outcome.STACK
    assert len(policies.datapath.flows()) == 2


def test_this_node_s_own_always_come_in(uplink: Uplink):
    policies, ends = Policies(uplink.datapath), uplink.ends
    policies.isolate(ends.alice, INGRESS)
    policies.rule(7, EGRESS, DENY)
    probe = comes(ends, packets.tcp(dport=POD_PORT), uplink.node)
    assert uplink.datapath.to_pod(probe, 0).outcome == Outcome.STACK
    answer = packets.ethernet() / packets.ip(ends.alice, uplink.node) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    for _ in range(2):
        assert uplink.datapath.from_pod(answer).outcome == Outcome.STACK
        policies.bump(ALICE_IFINDEX)
    other = comes(ends, packets.tcp(sport=1, dport=POD_PORT), ends.outside)
    assert uplink.datapath.to_pod(other, 0).outcome == Outcome.STACK
    masqueraded = comes(ends, packets.tcp(sport=2, dport=POD_PORT), uplink.node)
    assert uplink.datapath.to_pod(masqueraded).outcome == Outcome.STACK


def test_a_process_of_this_node_through_a_service(uplink: Uplink):
    policies, ends = Policies(uplink.datapath), uplink.ends
    uplink.serve("bob")
    policies.isolate(ends.bob, INGRESS)
    policies.rule(7, EGRESS, DENY)
    went = uplink.go(packets.tcp(dport=SERVICE_PORT), ends.service)
    assert went.outcome == Outcome.POD
    assert uplink.datapath.to_pod(went.raw, 0).outcome == Outcome.STACK
    answer = packets.tcp("SA", POD_PORT, CLIENT_PORT)
    sent = packets.ethernet(packets.BOB_MAC) / packets.ip(ends.bob, uplink.node) / answer
    assert uplink.datapath.from_pod(sent, BOB_IFINDEX).reason == DropReason.NONE


def test_another_plugin_s_pod_is_that_plugin_s_to_judge(policies: Policies, ends: Ends):
    policies.isolate(ends.bob, INGRESS)
    pod = abi.Pod.unpack(policies.tables["pods"].get(packets.raw(ends.bob)) or b"")
    beside = abi.Pod(abi.Wire(BOB_IFINDEX, pod.wire.mac, 1), pod.id, pod.group)
    policies.tables["pods"].put(packets.raw(ends.bob), beside.pack())
    assert ask(policies.datapath, ends).outcome == Outcome.POD


@pytest.mark.parametrize("nat", [False, True], ids=["direct", "service"])
def test_ours_is_judged_when_another_plugin_s_pod_calls_it(policies: Policies, ends: Ends, nat: bool):
    datapath, first = policies.datapath, packets.tcp(dport=SERVICE_PORT if nat else POD_PORT)
    pod = abi.Pod.unpack(policies.tables["pods"].get(packets.raw(ends.bob)) or b"")
    policies.tables["pods"].put(packets.raw(ends.bob), abi.Pod(abi.Wire(BOB_IFINDEX, pod.wire.mac, 1), 2).pack())
    policies.isolate(ends.alice, INGRESS)
    sent = packets.ethernet(packets.BOB_MAC) / packets.ip(ends.bob, ends.lonely if nat else ends.alice) / first
    went = datapath.run("from_pod_beside", sent, BOB_IFINDEX)
    assert went.outcome == Outcome.STACK
    assert stopped(datapath.to_pod(went.raw, BOB_IFINDEX), DropReason.POLICY_INGRESS)
    policies.rule(7, INGRESS, ALLOW)
    assert datapath.to_pod(went.raw, BOB_IFINDEX).outcome == Outcome.STACK
    answer = packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.tcp("SA", POD_PORT, CLIENT_PORT)
    assert datapath.from_pod(answer).outcome != Outcome.DROP


# Which rule


def test_an_exact_address_wins_over_its_block(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, EGRESS)
    policies.block("fd00::/8" if ends.ipv6 else "10.0.0.0/8", 3)
    policies.rule(7, EGRESS, ALLOW, 3)
    assert ask(policies.datapath, ends, ends.carol).outcome == Outcome.STACK
    policies.peer(ends.carol, 4)
    policies.rule(7, EGRESS, DENY, 4, identity=9)
    assert stopped(ask(policies.datapath, ends, ends.carol, packets.tcp(sport=1)), DropReason.POLICY_EGRESS)
    assert policies.last_sample().rule == 9


def test_a_class_without_an_entry_gets_everybody_s(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, EGRESS)
    policies.peer(ends.bob, 12)
    assert stopped(ask(policies.datapath, ends), DropReason.POLICY_EGRESS)


@pytest.mark.parametrize("direction", Direction)
def test_a_group_without_rules_is_closed(policies: Policies, ends: Ends, direction: Direction):
    who = ends.alice if direction == EGRESS else ends.bob
    policies.select(who, 7)
    policies.tables["rules"].delete_batch([abi.RuleKey(7, 0, direction).pack()])
    assert stopped(ask(policies.datapath, ends), DropReason.NO_RULES)
    assert policies.last_sample().rule == 0


RANGES = [(port & ~((1 << (16 - length)) - 1), length) for length in range(17) for port in (POD_PORT,)]


@pytest.mark.parametrize(("port", "length"), RANGES)
def test_ranges_of_ports(policies: Policies, port: int, length: int):
    ends = packets.V6 if length % 2 else packets.V4
    policies.select(ends.alice, 7)
    policies.rule(7, EGRESS, DENY, ports=[(port, length, 6, ALLOW)])
    first, last = port, port + (1 << (16 - length)) - 1
    for asked in {first, last, POD_PORT} - {0}:
        assert ask(policies.datapath, ends, transport=packets.tcp(dport=asked)).outcome == Outcome.POD
    for asked in {first - 1, last + 1} - {-1, 0, 65536}:
        got = ask(policies.datapath, ends, transport=packets.tcp(dport=asked))
        assert stopped(got, DropReason.POLICY_EGRESS), asked
    got = ask(policies.datapath, ends, transport=packets.udp(dport=POD_PORT))
    assert stopped(got, DropReason.POLICY_EGRESS)


def test_many_ranges_at_once(policies: Policies, ends: Ends):
    policies.select(ends.bob, 7)
    ranges = [(1 << (16 - length), length, 6, ALLOW if length % 2 else DENY) for length in range(1, 17)]
    policies.rule(7, INGRESS, AUDIT, ports=[*ranges, (0, 0, 17, DENY)])
    for port, length, *_ in ranges:
        got = ask(policies.datapath, ends, transport=packets.tcp(dport=port))
        assert got.outcome == (Outcome.POD if length % 2 else Outcome.DROP), length
    got = ask(policies.datapath, ends, transport=packets.udp(dport=1))
    assert stopped(got, DropReason.POLICY_INGRESS)
    assert ask(policies.datapath, ends, transport=packets.sctp()).outcome == Outcome.POD


def test_icmp_has_no_ports(policies: Policies, ends: Ends):
    policies.select(ends.bob, 7)
    icmp = abi.Protocol.ICMPV6 if ends.ipv6 else abi.Protocol.ICMP
    policies.rule(7, INGRESS, DENY, ports=[(0, 0, icmp, ALLOW), (0, 0, 6, ALLOW)])
    assert stopped(ask(policies.datapath, ends, transport=packets.echo(ends)), DropReason.POLICY_INGRESS)
    policies.rule(7, INGRESS, ALLOW)
    assert ask(policies.datapath, ends, transport=packets.echo(ends)).outcome == Outcome.POD


# What is said


def test_a_drop_names_its_rule(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, EGRESS)
    before = policies.drops(Hook.FROM_POD, DropReason.POLICY_EGRESS)
    ask(policies.datapath, ends)
    sample = policies.last_sample()
    assert (sample.reason, sample.rule, sample.hook) == (DropReason.POLICY_EGRESS, 100, Hook.FROM_POD)
    assert sample.tuple == packets.tuple_of(ends.alice, ends.bob, CLIENT_PORT, POD_PORT, 6)
    assert policies.drops(Hook.FROM_POD, DropReason.POLICY_EGRESS) == before + 1


def test_other_drops_name_none(policies: Policies, ends: Ends):
    policies.isolate(ends.alice, EGRESS)
    ask(policies.datapath, ends)
    policies.datapath.from_pod(packets.ethernet() / packets.ip(ends.bob, ends.carol) / packets.udp())
    assert (policies.last_sample().reason, policies.last_sample().rule) == (DropReason.SPOOFED_ADDRESS, 0)


def test_a_flow_names_the_rules_that_let_it_pass(policies: Policies, ends: Ends):
    policies.select(ends.alice, 7)
    policies.select(ends.bob, 8)
    policies.rule(7, EGRESS, ALLOW, identity=1 << 60)
    policies.rule(8, INGRESS, ALLOW, identity=12)
    ask(policies.datapath, ends)
    flows = policies.datapath.flows().values()
    assert {(flow.egress_rule, flow.ingress_rule) for flow in flows} == {(1 << 60, 12)}
    assert (policies.hits(1 << 60).allowed, policies.hits(12).allowed) == (1, 1)
    ask(policies.datapath, ends, transport=packets.tcp("A", dport=POD_PORT))
    assert (policies.hits(1 << 60).allowed, policies.hits(12).allowed) == (1, 1)


def test_what_one_side_allows_does_not_count_when_the_other_denies(policies: Policies, ends: Ends):
    policies.select(ends.alice, 7)
    policies.isolate(ends.bob, INGRESS, 8)
    policies.rule(7, EGRESS, AUDIT, identity=11)
    ask(policies.datapath, ends)
    assert (policies.hits(11), policies.hits(100)) == (abi.Hits(0, 0, 0), abi.Hits(0, 1, 0))


def test_audit_passes_and_is_counted(policies: Policies, ends: Ends):
    policies.select(ends.bob, 7)
    policies.rule(7, INGRESS, AUDIT)
    before = policies.drops(Hook.FROM_POD, DropReason.AUDITED)
    for _ in range(2):
        assert ask(policies.datapath, ends).outcome == Outcome.POD
    assert policies.drops(Hook.FROM_POD, DropReason.AUDITED) == before + 1
    assert (policies.last_sample().reason, policies.last_sample().rule) == (DropReason.AUDITED, 102)
    assert policies.hits(102) == abi.Hits(0, 0, 1)
    assert {flow.ingress_rule for flow in policies.datapath.flows().values()} == {102}


def test_what_came_in_untouched_goes_on_untouched(policies: Policies, ends: Ends):
    """A verdict changes nothing of the packet."""
    policies.select(ends.alice, 7)
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.tcp(dport=POD_PORT)
    assert Ether(policies.datapath.from_pod(sent).raw) == Ether(bytes(sent))
