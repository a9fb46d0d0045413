"""Backends that leave while flows lead there: the next packet heeds it, though nobody has looked at the flow."""

import pytest
from scapy.all import TCP, Packet

from ebpfnet import abi
from ebpfnet.abi import Departure, DropReason, FlowFlag, FlowState, Outcome
from ebpfnet.model.facts import Change, Delete, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from tests import packets
from tests.cluster import TCP as TCP_NUMBER
from tests.cluster import UDP as UDP_NUMBER
from tests.cluster import piece, service
from tests.packets import ALICE_IFINDEX, ALICE_MAC, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath, Result
from tests.prog.serving import TRANSPORTS, calls, ends_of
from tests.prog.uplink import NODE_PORT, Uplink

SET, OTHER = 79, 80
NOBODY = abi.Backend(bytes(16), 0)
STREAMS = pytest.mark.parametrize("protocol", ["tcp", "sctp"])


class Served:
    """A service whose only backend is Bob, until he leaves."""

    def __init__(self, datapath: Datapath, ends: Ends, program: str) -> None:
        self.datapath, self.ends, self.program = datapath, ends, program
        self.turn = 0

    def begin(self) -> None:
        self.datapath.tables["turn"].put(bytes(4), bytes(4))
        self.lead(self.ends.bob)
        for protocol, _ in TRANSPORTS.values():
            serving.put_frontend(self.datapath, self.ends.service, abi.Service(SET, SET), SERVICE_PORT, protocol)

    def lead(self, backend: str) -> None:
        serving.put_set(self.datapath, SET, [(backend, POD_PORT)] if backend else [])

    def leaves(self, how: Departure, identity: int = SET, backend: abi.Backend | None = None) -> None:
        """Let Bob leave, and Carol come in his place."""
        self.lead(self.ends.carol)
        gone = abi.Member(identity, backend or abi.Backend(packets.raw(self.ends.bob), POD_PORT))
        self.datapath.tables["departed"].put(gone.pack(), int(how).to_bytes(4, "little"))
        self.count()

    def count(self) -> None:
        self.turn += 1
        self.datapath.tables["turn"].put(bytes(4), self.turn.to_bytes(4, "little"))

    def asks(self, protocol: str, transport: Packet | None = None) -> Result:
        if transport is None:
            return self.datapath.run(self.program, calls(self.ends, protocol), ALICE_IFINDEX)
        sent = packets.ethernet() / packets.ip(self.ends.alice, self.ends.service) / transport
        return self.datapath.run(self.program, sent, ALICE_IFINDEX)

    def answers(self, protocol: str, transport: Packet | None = None, at: str = "backend") -> Result:
        more = {"flags": "SA"} if protocol == "tcp" else {}
        answer = transport or TRANSPORTS[protocol][1](sport=POD_PORT, dport=CLIENT_PORT, **more)
        sent = packets.ethernet(BOB_MAC) / packets.ip(self.ends.bob, self.ends.alice) / answer
        program = "to_pod_beside" if at == "client" and self.program == "from_pod_beside" else self.program
        return self.datapath.run(program, sent, BOB_IFINDEX)

    def connect(self, protocol: str) -> None:
        assert ends_of(self.asks(protocol)).destination == self.ends.bob
        self.answers(protocol)


@pytest.fixture(params=["from_pod", "from_pod_beside"])
def served(request: pytest.FixtureRequest, datapath: Datapath, ends: Ends) -> Served:
    found = Served(datapath, ends, request.param)
    found.begin()
    return found


def middle(*, back: bool = False) -> Packet:
    ports = (POD_PORT, CLIENT_PORT) if back else (CLIENT_PORT, SERVICE_PORT)
    return TCP(sport=ports[0], dport=ports[1], flags="PA", seq=5000, ack=7000) / b"more"


@pytest.mark.parametrize("how", Departure)
def test_datagrams_choose_anew(served: Served, how: Departure) -> None:
    served.connect("udp")
    served.leaves(how)
    assert ends_of(served.asks("udp")).destination == served.ends.carol
    flows = served.datapath.flows()
    assert {flow.to.destination for flow in flows.values() if not flow.flags & FlowFlag.REPLY} == {
        packets.raw(served.ends.carol)
    }
    assert len(flows) == 2, "both halves of the old one went"


@STREAMS
def test_unanswered_connections_choose_anew(served: Served, protocol: str) -> None:
    served.asks(protocol)
    served.leaves(Departure.UNFIT)
    assert ends_of(served.asks(protocol)).destination == served.ends.carol


@pytest.mark.parametrize("back", [False, True], ids=["client", "backend"])
def test_an_established_connection_ends(served: Served, back: bool) -> None:
    served.connect("tcp")
    served.leaves(Departure.GONE)
    say = served.answers if back else served.asks
    got = say("tcp", middle(back=back))
    assert (got.outcome, got.reason) == (Outcome.REJECT, DropReason.BACKEND_GONE)
    assert not served.datapath.flows()


@pytest.mark.parametrize("how", ["unfit", "another's"])
def test_an_established_connection_stays(served: Served, how: str) -> None:
    served.connect("tcp")
    if how == "unfit":
        served.leaves(Departure.UNFIT)
    else:
        served.leaves(Departure.GONE, OTHER)
    assert ends_of(served.asks("tcp", middle())).destination == served.ends.bob
    assert all(flow.state == FlowState.ESTABLISHED for flow in served.datapath.flows().values())


def test_datagrams_of_another_service_stay(served: Served) -> None:
    served.connect("udp")
    served.leaves(Departure.GONE, OTHER)
    assert ends_of(served.asks("udp")).destination == served.ends.bob


def test_a_service_that_goes_takes_its_datagrams_along(served: Served) -> None:
    served.connect("udp")
    served.leaves(Departure.UNFIT, backend=NOBODY)
    served.lead("")
    assert served.asks("udp").reason == DropReason.NO_ENDPOINTS


def test_late_answers_arrive_and_bring_nothing_back(served: Served) -> None:
    served.connect("udp")
    served.leaves(Departure.GONE)
    late = ends_of(served.answers("udp", at="client"))
    assert (late.source, late.source_port) == (served.ends.service, SERVICE_PORT)
    question = next(key for key, flow in served.datapath.flows().items() if not flow.flags & FlowFlag.REPLY)
    served.datapath.tables["flows"].delete(question.pack())  # evicted: the next answer restores it
    for key, flow in served.datapath.flows().items():
        stale = abi.Flow.unpack(flow.pack()[:40] + bytes(8) + flow.pack()[48:])
        served.datapath.tables["flows"].put(key.pack(), stale.pack())
    served.answers("udp")
    assert len(served.datapath.flows()) == 2
    assert ends_of(served.asks("udp")).destination == served.ends.carol


def test_who_comes_back_keeps_what_it_gets(served: Served) -> None:
    """A flow that began in this turn is not asked about, so that a backend may be in its slot before it is let off."""
    served.leaves(Departure.GONE)
    served.lead(served.ends.bob)
    assert ends_of(served.asks("udp")).destination == served.ends.bob
    assert ends_of(served.asks("udp")).destination == served.ends.bob
    served.count()
    served.lead(served.ends.carol)
    assert ends_of(served.asks("udp")).destination == served.ends.carol


def test_from_the_network(uplink: Uplink) -> None:
    datapath, ends = uplink.datapath, uplink.ends
    datapath.tables["turn"].put(bytes(4), bytes(4))
    for protocol in (6, 17):
        uplink.serve("carol", protocol=protocol)
    left = [ends_of(uplink.come(build(dport=NODE_PORT))) for build in (packets.tcp, packets.udp)]
    uplink.come(packets.tcp("SA", POD_PORT, left[0].source_port), source=ends.carol)
    for protocol in (6, 17):
        uplink.serve("alice", protocol=protocol)
        gone = abi.Member(7000 + protocol, abi.Backend(packets.raw(ends.carol), POD_PORT))
        datapath.tables["departed"].put(gone.pack(), int(Departure.GONE).to_bytes(4, "little"))
    datapath.tables["turn"].put(bytes(4), (1).to_bytes(4, "little"))
    assert uplink.come(packets.tcp("A", dport=NODE_PORT)).reason == DropReason.BACKEND_GONE
    assert ends_of(uplink.come(packets.udp(dport=NODE_PORT))).destination == ends.alice


@pytest.mark.parametrize("what", ["endpoint", "slice", "service"])
def test_told_by_the_reconciler(datapath: Datapath, ends: Ends, what: str) -> None:
    """Nobody sweeps here."""
    tables = datapath.tables
    reconciler = Reconciler(tables, "node-a")
    reconciler.departures.reset(tables)
    ports = [("t", TCP_NUMBER, POD_PORT), ("u", UDP_NUMBER, POD_PORT)]
    web = service("web", ends.service, ports=[("t", TCP_NUMBER, SERVICE_PORT), ("u", UDP_NUMBER, SERVICE_PORT)])
    bob, carol = piece("web", "a", [ends.bob], ports=ports), piece("web", "b", [ends.carol], ports=ports)
    reconciler.apply([Upsert(web), Upsert(bob), Synced()])
    for address, ifindex, mac in ((ends.alice, ALICE_IFINDEX, ALICE_MAC), (ends.bob, BOB_IFINDEX, BOB_MAC)):
        wire = abi.Wire(ifindex, bytes.fromhex(mac.replace(":", "")))
        tables["pods"].put(packets.raw(address), abi.Pod(wire, 1).pack())
    served = Served(datapath, ends, "from_pod")
    for protocol in ("tcp", "udp"):
        served.connect(protocol)
    empty = piece("web", "a", [], ports=ports)
    changes: dict[str, Change] = {
        "endpoint": Upsert(empty),
        "slice": Delete(bob.ref),
        "service": Delete(web.ref),
    }
    gone = changes[what]
    reconciler.apply([gone] if what == "service" else [Upsert(carol), gone])
    reconciler.departures.announce(tables, reconciler.fate)
    asked, said = served.asks("udp"), served.asks("tcp", middle())
    if what == "service":
        assert ends_of(asked).destination == ends.service, "no service's any more"
        assert ends_of(said).destination == ends.bob, "it goes on without its service"
    else:
        assert ends_of(asked).destination == ends.carol
        assert said.reason == DropReason.BACKEND_GONE
