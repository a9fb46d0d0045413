"""The answer to one flow: its samples sent, both directions followed, what arrived held against what should."""

from __future__ import annotations

from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.simulate import packets
from ebpfnet.simulate.directory import Place
from ebpfnet.simulate.flows import Flow
from ebpfnet.simulate.trace import Arrival, Decided, Step, Trace
from ebpfnet.simulate.world import Frontend, Node, World

FIRST_PORT = 32_768
PORTS = 28_000
SEVERITY = {"allow": 0, "reject": 1, "drop": 2}


class Sample(NamedTuple):
    """What became of one connection; ``backend`` is ``IP:PORT`` once the packet was translated to it."""

    verdict: str
    reason: str | None
    backend: str | None
    snat: str | None
    steps: list[Step]
    decided: list[Decided]


class Service(NamedTuple):
    """The service that a flow calls: as which node sees it, and whether it gets there from the network."""

    frontend: Frontend
    node: Node
    arrives: bool


def answer(world: World, flow: Flow) -> dict[str, Any]:
    """Return the answer to a flow, all but its own text; raises ``BadFlow``."""
    journey = world.directory.resolve(flow, FIRST_PORT)
    key = journey.key
    service = _service(world, journey.client, key)
    frontend = service.frontend if service else None
    counts: dict[str, dict[str, Any]] = {}
    for backend in frontend.backends if frontend else ():
        counts[backend] = {"hits": 0, "snat": None}
    shown: Sample | None = None
    for number in range(flow.samples):
        sample = _sample(world, journey.client, _with_port(key, FIRST_PORT + number % PORTS, flow), service)
        if frontend and sample.backend:
            entry = counts.setdefault(sample.backend, {"hits": 0, "snat": None})
            entry["hits"] += 1
            entry["snat"] = sample.snat or entry["snat"]
        if shown is None or SEVERITY[sample.verdict] > SEVERITY[shown.verdict]:
            shown = sample
    if frontend and frontend.affinity_s:
        world.forget_clients()
    assert shown is not None
    return {
        "verdict": shown.verdict,
        "reason": shown.reason,
        "service": frontend.label if frontend else None,
        "policy": ("Local" if frontend.local else "Cluster") if frontend else None,
        "backends": counts,
        "affinity_seconds": (frontend.affinity_s or None) if frontend else None,
        "rule": next((each.rule or None for each in shown.decided if each.verdict == "deny"), None),
        "policies": [each.document() for each in shown.decided],
        "steps": [step.document() for step in shown.steps],
    }


def _service(world: World, client: Place, key: bytes) -> Service | None:
    """Return the service behind a packet's destination: the client's node has it, or the node with that address."""
    node = world.node(client.node)
    arrives = client.kind == "outside"
    frontend = node.frontend(key, arrives=arrives)
    owner = world.directory.host_at(key[16:32])
    if frontend is None and owner not in {None, client.node}:
        node, arrives = world.node(str(owner)), True
        frontend = node.frontend(key, arrives=True)
    return Service(frontend, node, arrives) if frontend else None


def _with_port(key: bytes, source_port: int, flow: Flow) -> bytes:
    raw = source_port.to_bytes(2, "big")
    return key[:32] + raw + (raw if flow.protocol == "ICMP" else key[34:36]) + key[36:]


def _sample(world: World, client: Place, key: bytes, service: Service | None) -> Sample:
    trace = Trace(world)
    try:
        return _judge(trace, client, key, service)
    finally:
        trace.clean()


def _judge(trace: Trace, client: Place, key: bytes, service: Service | None) -> Sample:
    there = trace.send(client, key, answer=False)
    if there.place is None:
        return _stopped(trace, there, key, _translated(trace, service))
    seen = packets.tuple_of(there.packet)
    backend = packets.show_end(seen[16:32], seen[34:36]) if service else None
    snat = packets.show_address(seen[:16]) if seen[:16] != key[:16] else None
    if not _forward_is_right(seen, key, service, client) or not packets.checksums_hold(there.packet):
        trace.end(there.place.node, "mistranslated", seen)
        return Sample("drop", None, backend, snat, trace.steps, trace.decided)
    back = trace.send(there.place, packets.reverse(seen), answer=True)
    if back.place is None:
        return Sample("drop", trace.steps[-1].reason, backend, snat, trace.steps, trace.decided)
    heard = packets.tuple_of(back.packet)
    if not (_is_home(back.place, client) and heard == packets.reverse(key) and packets.checksums_hold(back.packet)):
        trace.end(back.place.node, "mistranslated", heard)
        return Sample("drop", None, backend, snat, trace.steps, trace.decided)
    return Sample("allow", None, backend, snat, trace.steps, trace.decided)


def _is_home(place: Place, client: Place) -> bool:
    """Outside is one place: an answer may leave by another node than the one that its question came in by.

    And a node whose address came in at another node is, seen from there, outside.
    """
    return place == client or (client.kind == "outside" and place.kind != "pod")


def _translated(trace: Trace, service: Service | None) -> str | None:
    """Return the backend that was chosen for a packet that got lost later, or None."""
    for step in trace.steps if service else ():
        end = packets.show_end(step.key[16:32], step.key[34:36])
        if service and step.verdict not in {"drop", "reject"} and end in service.frontend.backends:
            return end
    return None


def _forward_is_right(seen: bytes, key: bytes, service: Service | None, client: Place) -> bool:
    """Without a service nothing may be changed; with one, a backend of it, and the client as it is unless hidden."""
    if service is None:
        return seen == key
    backend = packets.show_end(seen[16:32], seen[34:36])
    if backend not in service.frontend.backends or seen[36:] != key[36:]:
        return False
    hidden = service.arrives and not service.frontend.direct
    if hidden and service.node.stands_in(seen[16:32]):  # the node stands in, or the answer would go past it
        return abi.unpack_address(seen[:16]) in service.node.host.sources
    if client.kind == "pod" and seen[16:32] == key[:16]:  # a pod that reaches itself sees the service as its client
        return seen[:16] == key[16:32]
    return seen[:16] == key[:16] and seen[32:34] == key[32:34]


def _stopped(trace: Trace, arrival: Arrival, key: bytes, backend: str | None) -> Sample:
    last = trace.steps[-1]
    if last.verdict != "reject":
        return Sample("drop", last.reason, backend, None, trace.steps, trace.decided)
    if not packets.is_refusal(arrival.packet, key):
        trace.end(last.node, "mistranslated", key)
        return Sample("drop", None, backend, None, trace.steps, trace.decided)
    return Sample("reject", last.reason, backend, None, trace.steps, trace.decided)
