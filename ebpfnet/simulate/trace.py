"""A packet's way from hook to hook, across nodes.

What is no program of ours is modelled: the nodes' routers and what is outside. The model of a router: an address of a
pod here goes down the pod's wire (``to_pod``), an own address to a process, the rest out of the uplink (``to_network``)
and the network carries it to the node that has the address or its block (``from_network``), or outside, where somebody
answers unless the address is the cluster's. What a process sends to an own address goes over loopback (``from_host``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Direction
from ebpfnet.maps.hits import policies_by
from ebpfnet.simulate import packets
from ebpfnet.simulate.cited import NOTHING, Told, cited
from ebpfnet.simulate.directory import Place, is_routable, label
from ebpfnet.simulate.world import UPLINK_IFINDEX, Node, World

HOPS_MAX = 16
_DENIED = {
    abi.DropReason.POLICY_EGRESS: Direction.EGRESS,
    abi.DropReason.POLICY_INGRESS: Direction.INGRESS,
    abi.DropReason.NO_RULES: None,
}
"""Drops by policies, and whose side said so; of a pod without rules only the fact is known."""
ROUTER_MAC = b"\x02\xeb\xff\xff\xff\x01"
OUTSIDE_MAC = b"\x02\xeb\xff\xff\xff\x02"
UPLINK_MAC = bytes(6)  # of the loopback device, on which a test run is: any other MAC is another host's
OUTCOMES = tuple(outcome.name.lower() for outcome in abi.Outcome)
REASONS = {int(reason): reason.name for reason in abi.DropReason}


class Step(NamedTuple):
    """One program that ran, or (``program`` None) where the model says that the way ends."""

    node: str
    program: str | None
    verdict: str
    reason: str | None
    direction: str
    key: bytes

    def document(self) -> dict[str, Any]:
        """Return the step as it is printed."""
        packet = packets.show(self.key)
        return {
            "node": self.node,
            "program": self.program,
            "verdict": self.verdict,
            "reason": self.reason,
            "direction": self.direction,
            "packet": packet,
        }


class Decided(NamedTuple):
    """What policies said where a packet left a pod or came to one. ``rule`` empty: a pod's rules are missing.

    ``policies`` are those that it is of, ``citation`` says which entry of its peers means the other end.
    """

    node: str
    direction: str
    verdict: str
    rule: str
    peer: str
    policies: tuple[str, ...]
    citation: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return it as it is printed."""
        head = {"node": self.node, "direction": self.direction, "verdict": self.verdict, "rule": self.rule or None}
        return {**head, "peer": self.peer, "policies": list(self.policies), **self.citation}


class Arrival(NamedTuple):
    """Where a packet ended; ``place`` None: it did not arrive, and the last step says why."""

    place: Place | None
    packet: bytes


class Trace:
    """One connection's first packet and its answer. ``steps`` grows as they go; ``clean`` removes what they left."""

    def __init__(self, world: World) -> None:
        self.steps: list[Step] = []
        self.decided: list[Decided] = []
        self._world = world
        self._directory = world.directory
        self._left: list[tuple[Node, bytes]] = []
        self._direction = "forward"

    def send(self, place: Place, key: bytes, *, answer: bool) -> Arrival:
        """Send the first packet with this tuple, or the answer, from a place, and follow it to its end."""
        self._direction = "reply" if answer else "forward"
        node = self._world.node(place.node)
        if place.kind == "pod":
            wire = node.wires[place.pod]
            return self._from_pod(node, packets.build(key, wire.mac, ROUTER_MAC, answer=answer), wire.ifindex)
        packet = packets.build(key, OUTSIDE_MAC, ROUTER_MAC, answer=answer)
        if place.kind == "host":
            return self._from_process(node, packet, key)
        return self._from_network(node, packet)

    def end(self, node: str, verdict: str, key: bytes) -> None:
        """Note where and why the model says that the way ends."""
        self.steps.append(Step(node, None, verdict, None, self._direction, key))

    def clean(self) -> None:
        """Forget the connection on every node."""
        for node, key in self._left:
            node.forget(key)
        self._left.clear()

    def _run(self, node: Node, program: str, packet: bytes, ifindex: int) -> tuple[int, bytes, int, bytes]:
        """Run a program; returns outcome, packet, target interface, and the packet's tuple as it now is."""
        result = node.run(program, packet, ifindex)
        outcome, reason, target = result.cb[:3]
        before = packets.tuple_of(packets.unwrapped(packet) or packet)
        ended = outcome >= abi.Outcome.REJECT
        if ended:
            after = node.remembered(before) or before
        else:
            after = (packets.way_of if packets.unwrapped(result.packet) else packets.tuple_of)(result.packet)
        self._left += (node, before), (node, packets.reverse(after))
        if outcome == abi.Outcome.NETWORK and self._directory.host_at(after[16:32]) == node.name:
            outcome = abi.Outcome.STACK  # the network of test runs has no such route, but a node has, and then says so
        if self._direction == "forward":
            self._judged(node, before, after, result.cb)
        text = REASONS[reason] if ended else None
        self.steps.append(Step(node.name, program, OUTCOMES[outcome], text, self._direction, after))
        return outcome, result.packet, target, after

    def _judged(self, node: Node, before: bytes, after: bytes, cb: Sequence[int]) -> None:
        """Note what policies said of a first packet: each side is asked once, by the first program that can."""
        reason = abi.DropReason(cb[1]) if cb[0] >= abi.Outcome.REJECT else abi.DropReason.NONE
        if reason in _DENIED:
            way = _DENIED[reason]
            self._decide(node, way, "deny", 0 if way is None else cb[3] | cb[4] << 32, before, after)
        elif reason == abi.DropReason.NONE:
            for direction, rule in node.rules(before):
                verdict = "audit" if node.audited(rule) else "allow"
                self._decide(node, direction, verdict, rule, before, after)

    def _decide(
        self, node: Node, direction: Direction | None, verdict: str, rule: int, before: bytes, after: bytes
    ) -> None:
        word = direction.name.lower() if direction is not None else ""
        if any((each.node, each.direction) == (node.name, word) for each in self.decided):
            return
        told = Told(before[:16], NOTHING) if direction is None else cited(node, direction, rule, before, after)
        pod = self._directory.pod_at(told.peer)
        peer = label(pod) if pod else packets.show_address(told.peer)
        name, policies = (node.rule(rule), policies_by(rule, node.rule)) if rule else ("", ())
        self.decided.append(Decided(node.name, word, verdict, name, peer, policies, told.citation))

    def _from_pod(self, node: Node, packet: bytes, ifindex: int) -> Arrival:
        outcome, packet, target, key = self._run(node, "from_pod", packet, ifindex)
        return self._go_on(node, outcome, packet, target, key, ifindex, hops=0)

    def _from_process(self, node: Node, packet: bytes, key: bytes) -> Arrival:
        if self._directory.host_at(key[16:32]) != node.name:
            return self._route(node, packet, 0, key)
        outcome, packet, target, key = self._run(node, "from_host", packet, 0)
        if outcome == abi.Outcome.POD:
            return self._down_wire(node, packet, target, 0)
        return self._go_on(node, outcome, packet, target, key, 0, hops=0)

    def _from_network(self, node: Node, packet: bytes, hops: int = 0) -> Arrival:
        outcome, packet, target, key = self._run(node, "from_network", UPLINK_MAC + packet[6:], UPLINK_IFINDEX)
        return self._go_on(node, outcome, packet, target, key, UPLINK_IFINDEX, hops=hops)

    def _go_on(
        self, node: Node, outcome: int, packet: bytes, target: int, key: bytes, ifindex: int, *, hops: int
    ) -> Arrival:
        if outcome == abi.Outcome.POD:
            return self._into_pod(node, packet, target, key)
        if outcome >= abi.Outcome.REJECT:
            return Arrival(None, packet)
        if outcome == abi.Outcome.NETWORK:  # past the router: what it does is done
            return self._carry(node, packet, ifindex, key, hops)
        return self._route(node, packet, ifindex, key, hops)

    def _down_wire(self, node: Node, packet: bytes, wire: int, ifindex: int) -> Arrival:
        """Out of the host's end of a pod's wire."""
        outcome, packet, _, key = self._run(node, "to_pod", packet, ifindex)
        return self._into_pod(node, packet, wire, key) if outcome == abi.Outcome.STACK else Arrival(None, packet)

    def _into_pod(self, node: Node, packet: bytes, ifindex: int, key: bytes) -> Arrival:
        pod = node.pods.get(ifindex)
        if pod is None or packet[:6] != node.wires[pod].mac:
            self.end(node.name, "misdelivered", key)
            return Arrival(None, packet)
        return Arrival(Place("pod", node.name, pod), packet)

    def _route(self, node: Node, packet: bytes, ifindex: int, key: bytes, hops: int = 0) -> Arrival:
        """What the host's stack does with a packet that is its own (``ifindex`` 0) or that it forwards."""
        destination = key[16:32]
        if self._directory.host_at(destination) == node.name:
            return Arrival(Place("host", node.name), packet)
        pod = self._directory.pod_at(destination)
        local = pod is not None and node.wires.get(f"{pod.ref.namespace}/{pod.ref.name}")
        mac = local.mac if local else OUTSIDE_MAC
        packet = packets.forwarded(packet, ROUTER_MAC, mac) if ifindex else mac + ROUTER_MAC + packet[12:]
        if local:
            return self._down_wire(node, packet, local.ifindex, ifindex)
        return self._carry(node, packet, ifindex, key, hops)

    def _carry(self, node: Node, packet: bytes, ifindex: int, key: bytes, hops: int) -> Arrival:
        """Out of the uplink, and in where the network takes it."""
        owner = self._directory.owner_of(key[16:32])
        # Of no network; of this node's block, but nobody's; or a loop.
        if not is_routable(key[16:32]) or owner == node.name or hops > HOPS_MAX:
            self.end(node.name, "unreachable", key)
            return Arrival(None, packet)
        outcome, packet, target, key = self._run(node, "to_network", packet, ifindex)
        if outcome >= abi.Outcome.REJECT:
            return Arrival(None, packet)
        if outcome == abi.Outcome.POD:
            return self._down_wire(node, packet, target, ifindex)
        if self._directory.host_at(key[16:32]) == node.name:  # from one process to another
            return Arrival(Place("host", node.name), packet)
        owner = self._directory.owner_of(key[16:32])
        if owner is not None:
            return self._from_network(self._world.node(owner), packet, hops + 1)
        if self._directory.is_inside(key[16:32]):
            self.end(node.name, "unreachable" if self._directory.has_frontend(key) else "unserved", key)
            return Arrival(None, packet)
        return Arrival(Place("outside", node.name), packet)
