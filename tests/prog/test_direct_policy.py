"""Direct server return and policies: who comes in a second header is judged at the backend as the client that it is."""

from __future__ import annotations

import pytest
from scapy.all import Packet

from ebpfnet import abi
from ebpfnet.abi import Direction, DropReason, Hook, Outcome, Verdict
from tests import packets
from tests.packets import ALICE_IFINDEX, CLIENT_PORT, POD_PORT, SERVICE_PORT
from tests.prog.direct import PEER, asked, balancer, is_direct, serve, wrapped
from tests.prog.loaded import Result
from tests.prog.policies import Policies
from tests.prog.serving import TRANSPORTS
from tests.prog.uplink import NODE_PORT, Uplink

INGRESS, EGRESS = Direction
ALLOW, DENY, AUDIT = Verdict.ALLOW, Verdict.DENY, Verdict.AUDIT
CLIENT, NODE = 3, 4
TARGETS = ["node port", "balancer"]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policies(uplink: Uplink) -> Policies:
    """Return the tables of policies; the client outside and the node that it calls are of classes of their own."""
    found = Policies(uplink.datapath)
    found.peer(uplink.ends.outside, CLIENT)
    found.peer(PEER[uplink.ends.ipv6], NODE)
    return found


def comes(uplink: Uplink, transport: str = "tcp", target: str = "node port", **fields: str) -> Result:
    """Let a client's packet to the other node come from there, for Alice."""
    build, ends = TRANSPORTS[transport][1], uplink.ends
    to, port = (PEER[ends.ipv6], NODE_PORT) if target == "node port" else (balancer(ends), SERVICE_PORT)
    return uplink.raw(wrapped(uplink, asked(uplink, build(dport=port, **fields), to), "alice"))


def answers(uplink: Uplink, transport: str = "tcp", **fields: str) -> Result:
    segment = TRANSPORTS[transport][1](sport=POD_PORT, dport=CLIENT_PORT, **fields)
    sent: Packet = packets.ethernet() / packets.ip(uplink.ends.alice, uplink.ends.outside, ttl=64) / segment
    return uplink.datapath.from_pod(sent)


def stopped(got: Result, reason: DropReason = DropReason.POLICY_INGRESS) -> bool:
    return (got.outcome, got.reason) == (Outcome.DROP, reason)


@pytest.mark.parametrize("target", TARGETS)
def test_denied(uplink: Uplink, policies: Policies, transport: str, target: str):
    """Also where the node that was called may: it is not who calls."""
    serve(uplink, "alice", TRANSPORTS[transport][0])
    policies.isolate(uplink.ends.alice, INGRESS)
    policies.rule(7, INGRESS, ALLOW, NODE)
    assert stopped(comes(uplink, transport, target))
    sample = policies.last_sample()
    assert (sample.rule, sample.hook) == (100, Hook.FROM_NETWORK)
    assert sample.tuple.source == packets.raw(uplink.ends.outside)
    assert not uplink.datapath.flows()
    assert policies.hits(100) == abi.Hits(0, 1, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_allowed(uplink: Uplink, policies: Policies, transport: str, target: str):
    """The client, at the backend's own port."""
    number = TRANSPORTS[transport][0]
    serve(uplink, "alice", number)
    policies.isolate(uplink.ends.alice, INGRESS)
    policies.rule(7, INGRESS, DENY, CLIENT, ports=[(POD_PORT, 16, number, ALLOW)])
    got = comes(uplink, transport, target)
    assert (got.outcome, got.ifindex) == (Outcome.POD, ALICE_IFINDEX)
    assert answers(uplink, transport).outcome == Outcome.NETWORK
    assert {flow.ingress_rule for flow in uplink.datapath.flows().values()} == {200}
    assert policies.hits(200).allowed == 1


@pytest.mark.parametrize("port", [NODE_PORT, SERVICE_PORT])
def test_the_port_that_was_called_is_not_the_backend_s(uplink: Uplink, policies: Policies, port: int):
    serve(uplink, "alice")
    policies.isolate(uplink.ends.alice, INGRESS)
    policies.rule(7, INGRESS, DENY, CLIENT, ports=[(port, 16, 6, ALLOW)])
    for target in TARGETS:
        assert stopped(comes(uplink, target=target))


def test_both_ways_stop_when_it_is_not_allowed_any_more(uplink: Uplink, policies: Policies):
    serve(uplink, "alice")
    assert comes(uplink).outcome == Outcome.POD
    assert answers(uplink, flags="SA").outcome == Outcome.NETWORK
    policies.isolate(uplink.ends.alice, INGRESS)
    assert comes(uplink, flags="A").outcome == Outcome.POD, "before its generation changes nothing is asked"
    policies.bump(ALICE_IFINDEX)
    assert stopped(answers(uplink, flags="A"))
    assert stopped(comes(uplink, flags="A"))
    policies.rule(7, INGRESS, ALLOW, CLIENT)
    assert comes(uplink, flags="A").outcome == Outcome.POD
    assert answers(uplink, flags="A").outcome == Outcome.NETWORK


def test_answers_are_no_questions(uplink: Uplink, policies: Policies):
    serve(uplink, "alice")
    policies.isolate(uplink.ends.alice, EGRESS)
    assert comes(uplink).outcome == Outcome.POD
    assert answers(uplink, flags="SA").outcome == Outcome.NETWORK


def test_audit_passes_and_is_counted(uplink: Uplink, policies: Policies):
    serve(uplink, "alice")
    policies.select(uplink.ends.alice, 7)
    policies.rule(7, INGRESS, AUDIT)
    assert comes(uplink).outcome == Outcome.POD
    assert policies.hits(102) == abi.Hits(0, 0, 1)


def test_the_node_that_is_called_leaves_it_to_the_backend_s(uplink: Uplink, policies: Policies):
    """What is said of pods of other nodes is not in its tables; a pod of its own is judged here."""
    policies.isolate(uplink.ends.alice, INGRESS)
    serve(uplink, "carol")
    assert is_direct(uplink.come(packets.tcp(dport=NODE_PORT)))
    serve(uplink, "alice")
    assert stopped(uplink.come(packets.tcp(dport=NODE_PORT, sport=41_000)))
    policies.rule(7, INGRESS, ALLOW, CLIENT)
    assert uplink.come(packets.tcp(dport=NODE_PORT, sport=41_000)).outcome == Outcome.POD
