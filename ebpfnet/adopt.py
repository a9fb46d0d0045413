"""Taking over connections that kube-proxy's rules translated, so that they outlive the rules (``agent --adopt``).

A connection is known by its backend, which must be one of the service's; then two entries of ``flows`` say what the
kernel's NAT said, as if our programs had opened it (bpf/lib/flow.h, remember). After that the kernel must forget it:
our packets would look to it like a second connection with the same answers, and be dropped for that (Linux
net/netfilter/nf_conntrack_core.c, __nf_conntrack_confirm). What the node itself says passes kube-proxy's rules before
it comes to us: the kernel is to know its connections as ones that nobody translates.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ebpfnet import abi, clock
from ebpfnet.datapath import conntrack, routes
from ebpfnet.datapath.conntrack import Translated
from ebpfnet.datapath.netlink import NETFILTER, Reader
from ebpfnet.maps.table import Table, TableError

log = logging.getLogger(__name__)

NOWHERE = abi.Wire(0, bytes(6))
LOOPBACK = abi.Wire(1, bytes(6))  # LOOPBACK_IFINDEX of bpf/lib/deliver.h
NAT, REPLY, BESIDE, HOST = abi.FlowFlag.NAT, abi.FlowFlag.REPLY, abi.FlowFlag.BESIDE, abi.FlowFlag.HOST
DISCARD = {True: abi.V4_PREFIX + bytes((127, 0, 0, 1)), False: bytes(15) + b"\1"}

UNKNOWN_BACKEND = "its backend is none of the service's now"
NO_SERVICE = "its destination is no service"
STAND_IN = "the node stands in for the client, before a backend that would answer past us"
OURS = "it is ours already"


class Left(Exception):
    """A connection stays with the kernel: why."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """Two entries. ``guard``: until the kernel has forgotten the connection, its questions must not reach it."""

    key: abi.Tuple
    flow: abi.Flow
    guard: bool

    @property
    def own(self) -> bool:
        """Say whether the node itself is the client. SCTP's associations can't be made known without their tags."""
        return bool(self.flow.flags & HOST) and self.key.protocol != abi.Protocol.SCTP

    @property
    def back(self) -> tuple[abi.Tuple, abi.Flow]:
        """Return the entry of the answers."""
        flow = self.flow
        turned = replace(
            flow, to=self.key.reverse(), from_=flow.deliver, deliver=flow.from_, flags=flow.flags | abi.FlowFlag.REPLY
        )
        return flow.to.reverse(), turned


class Services:
    """What the tables say of frontends and their backends, read once."""

    def __init__(self, tables: Mapping[str, Table], way_out: Callable[[bytes], abi.Wire]) -> None:
        self._tables = tables
        self.way_out = way_out
        """From the node itself to an address: the interface, and its MAC."""
        self._members: dict[int, set[bytes]] = {}

    def sets(self, question: abi.Tuple) -> tuple[int, ...]:
        """Return the ids of the endpoint sets behind a destination; () for what is no service."""
        port, protocol = question.destination_port, question.protocol
        found = self._service(question.destination, port, protocol)
        if found is None and self.marks(question.destination) & abi.Mark.NODEPORTS:
            mapped = question.destination.startswith(abi.V4_PREFIX)
            found = self._service((abi.V4_PREFIX if mapped else bytes(12)) + bytes(4), port, protocol)
        return (found.inside, found.outside) if found else ()

    def marks(self, address: bytes) -> int:
        """Return what an address is."""
        found = self._service(address, 0, 0)
        return found.marks if found else 0

    def wire(self, address: bytes) -> abi.Wire | None:
        """Return the wire of a pod of this node."""
        raw = self._tables["pods"].get(address)
        return abi.Pod.unpack(raw).wire if raw else None

    def leads_to(self, identity: int, backend: abi.Backend) -> bool:
        """Say whether a set has a backend."""
        if identity not in self._members:
            self._members[identity] = set(self._backends(identity))
        return backend.pack() in self._members[identity]

    def known(self, key: abi.Tuple) -> bool:
        """Say whether there is a flow that is translated; one that is not began before there were services."""
        raw = self._tables["flows"].get(key.pack())
        return raw is not None and bool(abi.Flow.unpack(raw).flags & NAT)

    def _service(self, address: bytes, port: int, protocol: int) -> abi.Service | None:
        raw = self._tables["services"].get(abi.Frontend(address, port, protocol).pack())
        return abi.Service.unpack(raw) if raw else None

    def _backends(self, identity: int) -> Iterable[bytes]:
        raw = self._tables["sets"].get(identity.to_bytes(8, "little"))
        found = abi.Set.unpack(raw) if raw else abi.Set(0, 0)
        for index in range(found.count):
            if backend := self._tables["slots"].get(abi.Slot(identity, found.generation, index).pack()):
                yield backend


def plan(found: Translated, services: Services, now_ns: int) -> Adoption:
    """Return what to write for a connection; raises ``Left`` for one that the kernel must keep."""
    question, answer = found
    client, backend = question.source, answer.source
    to = answer.reverse()
    if services.known(question):
        raise Left(OURS)
    sets = services.sets(question)
    if not sets:
        raise Left(NO_SERVICE)
    member = abi.Backend(backend, answer.source_port)
    identity = next((each for each in sets if services.leads_to(each, member)), None)
    if identity is None:
        raise Left(UNKNOWN_BACKEND)
    stood_in = to.source != client or to.source_port != question.source_port
    wire, here = services.wire(client), services.wire(backend)
    own_backend = here is None and bool(services.marks(backend) & abi.Mark.OWN)
    flags, source, deliver = NAT, NOWHERE, here or NOWHERE
    if wire is not None:
        source = wire
        flags |= BESIDE if wire.segment else 0
        unfit = wire.segment != 0 and stood_in
    elif services.marks(client) & abi.Mark.OWN:
        source = services.way_out(question.destination)
        deliver = LOOPBACK if own_backend else deliver
        flags |= HOST
        unfit = False
    else:
        flags |= BESIDE if here and here.segment and not stood_in else 0
        unfit = own_backend and stood_in
    if unfit:
        raise Left(STAND_IN)
    state = abi.FlowState.ESTABLISHED
    flow = abi.Flow(to, now_ns, identity, 0, source, deliver, state, abi.FlowFlag(flags), 0)
    return Adoption(question, flow, guard=bool(flags & BESIDE))


def write(adoption: Adoption, flows: Table, forget: Callable[[], None]) -> None:
    """Write both entries and let the kernel forget the connection, without a moment that could end it.

    Questions that the kernel sees translated, while it still has the connection, would get another source port from it,
    and a reset for an answer. Those it sees untranslated, when it has it no more, could be given to another backend. So
    in between they are turned to an address where they are dropped; TCP sends them again. Answers are right before and
    after.
    """
    key, flow = adoption.key, adoption.flow
    answer, back = adoption.back
    if adoption.guard:
        discard = DISCARD[key.source.startswith(abi.V4_PREFIX)]
        flows.put(key.pack(), replace(flow, to=replace(flow.to, destination=discard)).pack())
        flows.put(answer.pack(), back.pack())
        forget()
        flows.put(key.pack(), flow.pack())
    else:
        flows.put(answer.pack(), back.pack())
        flows.put(key.pack(), flow.pack())
        forget()


def adopt(tables: Mapping[str, Table]) -> Counter[str]:
    """Take over every connection that can be; returns how many, and how many stay with the kernel for which reason."""
    told: Counter[str] = Counter()
    with Reader(NETFILTER) as reader, Reader(NETFILTER) as deleter, routes.Asked() as asked:
        services = Services(tables, asked.way_out)
        for found in list(conntrack.translated(reader)):
            try:
                adoption = plan(found, services, clock.kernel_ns())
                release = conntrack.untranslate if adoption.own else conntrack.forget
                write(adoption, tables["flows"], functools.partial(release, deleter, found.question))
                told["adopted"] += 1
            except Left as why:
                told[str(why)] += 1
    return told


def run(tables: Mapping[str, Table]) -> None:
    """Do it and say so; what fails stays with the kernel."""
    try:
        told = adopt(tables)
    except (OSError, TableError) as error:
        log.warning("--adopt: %s; connections that were not taken over stay with the kernel", error.strerror or error)
        return
    log.info("--adopt: took over %d connections", told.pop("adopted", 0))
    for why, count in sorted(told.items()):
        log.info("--adopt: %d connections stay with the kernel: %s", count, why)
