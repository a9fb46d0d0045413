"""``services``: which service has each frontend, what addresses are, and which endpoint sets frontends lead to now.

A frontend belongs to whoever comes first by ``compile.services.precedes``; the others are named. It is written once all
sets that it leads to are there, and a set may go once no frontend leads to it any more (``uses``).
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.abi import Mark
from ebpfnet.compile.host import compile_marks, mark_key
from ebpfnet.compile.services import Asked, Compiled, precedence, precedes
from ebpfnet.maps.dump import frontend_name
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import IPAddress, Kind, Problem, Ref, Service
from ebpfnet.model.host import Host
from ebpfnet.reconcile.keyed import Keyed

_SETS = struct.Struct("QQ16x")  # of a value: inside, outside
_PROTOCOL = 18  # of a key
_PORT = slice(16, 20)  # of a key: port, protocol and padding
assert _SETS.size == abi.Service.size()
_MARKS = [abi.Service(0, 0, marks=marks).pack() for marks in range(2 * max(Mark))]


def sets_of(value: bytes) -> set[int]:
    """Return the endpoint sets that a value leads to; none for marks."""
    return set(_SETS.unpack(value)) - {0}


def _is_mark(key: bytes) -> bool:
    return not key[_PROTOCOL]


def _count(counts: dict[int, int], before: bytes | None, now: bytes | None) -> None:
    """Count how often sets are led to."""
    if before == now:
        return
    old, new = (sets_of(each) if each else set() for each in (before, now))
    for identity in new - old:
        counts[identity] = counts.get(identity, 0) + 1
    for identity in old - new:
        counts[identity] -= 1
        if not counts[identity]:
            del counts[identity]


class Frontends(Keyed):
    """All of ``services``; ``ready`` says whether a set is there to lead to."""

    def __init__(self, table: Table, node: str, ready: Callable[[int], bool]) -> None:
        super().__init__(table)
        self._node = Ref(Kind.NODE, "", node)
        self.uses: dict[int, int] = {}
        """How many frontends in the table lead to a set."""
        self.leads: dict[int, int] = {}
        """How many frontends are to lead to a set."""
        self.turns = 0
        """Counts what may leave flows astray: frontends that come, go or lead elsewhere."""
        self._ready = ready
        self._asks: dict[Ref, tuple[tuple[bytes, Asked], ...]] = {}
        self._claims: dict[bytes, Ref | list[Ref]] = {}  # who asks for a key; most often one
        # How many services have a cluster IP, ours and other proxies'.
        self._allocated: dict[Mark, dict[bytes, int]] = {Mark.CLUSTER_IP: {}, Mark.FOREIGN: {}}
        self._ips_of: dict[Ref, tuple[bytes, ...]] = {}
        self._foreign: set[Ref] = set()
        self._own: dict[bytes, int] = {}  # marks of the node's addresses
        self._nodes: Counter[bytes] = Counter()  # how many nodes have an address
        self._direct: set[Ref] = set()  # services that make it matter which those are
        self._strays: dict[int, list[bytes]] = {}  # kept keys, by the sets they lead to

    # What is wanted

    def place(self, host: Host) -> None:
        """Mark the node's own addresses."""
        before, self._own = self._own, compile_marks(host)
        for address in before | self._own:
            self._mark(address)

    def know_node(self, before: Collection[IPAddress], now: Collection[IPAddress]) -> None:
        """Mark the addresses that a Node object has, if a service is direct."""
        self._nodes.subtract(map(abi.pack_address, before))
        self._nodes.update(map(abi.pack_address, now))
        for address in map(abi.pack_address, {*before, *now}):
            if not self._nodes[address]:
                del self._nodes[address]
            if self._direct:
                self._mark(address)

    def _note_direct(self, ref: Ref, *, direct: bool) -> None:
        before = bool(self._direct)
        (self._direct.add if direct else self._direct.discard)(ref)
        for address in self._nodes if before != bool(self._direct) else ():
            self._mark(address)

    def claim(self, ref: Ref, compiled: Compiled | None) -> set[bytes]:
        """Take in what a service asks for, or with None that it is gone; returns what must be ``award``-ed."""
        before = self._asks.pop(ref, ())
        for key, _ in before:
            holders = self._claims.pop(key)
            if isinstance(holders, list):
                left = [each for each in holders if each != ref]
                self._claims[key] = left[0] if len(left) == 1 else left
        ips, mark = self._ips_of.pop(ref, ()), Mark.FOREIGN if ref in self._foreign else Mark.CLUSTER_IP
        self._allocate(mark, ips, -1)
        self._foreign.discard(ref)
        touched = {key for key, _ in before}
        if compiled is not None:
            asks = tuple((key, Asked(a.value, sys.intern(a.field))) for key, a in compiled.frontends.items())
            self._asks[ref] = asks
            self._ips_of[ref] = tuple(compiled.cluster_ips)
            for key, _ in asks:
                others = self._claims.get(key)
                if others is None:
                    self._claims[key] = ref
                else:
                    self._claims[key] = [*(others if isinstance(others, list) else [others]), ref]
                touched.add(key)
            self._allocate(compiled.mark, compiled.cluster_ips, 1)
            if compiled.mark == Mark.FOREIGN:
                self._foreign.add(ref)
        for address in {*ips, *(compiled.cluster_ips if compiled else ())}:
            self._mark(address)
        self._note_direct(ref, direct=bool(compiled and compiled.direct))
        return touched

    def _allocate(self, mark: Mark, addresses: Iterable[bytes], by: int) -> None:
        counts = self._allocated[mark]
        for address in addresses:
            counts[address] = counts.get(address, 0) + by
            if not counts[address]:
                del counts[address]

    def _mark(self, address: bytes) -> None:
        marks = self._own.get(address, 0)
        for mark, counts in self._allocated.items():
            marks |= mark if address in counts else 0
        marks |= Mark.NODE if self._direct and address in self._nodes else 0
        self.ask(mark_key(address), _MARKS[marks] if marks else None)

    def award(self, keys: Iterable[bytes], services: Mapping[Ref, Service]) -> set[Ref]:
        """Give each frontend to whom it belongs; returns all who ask for one of them."""
        askers: set[Ref] = set()
        for key in keys:
            holders = self._claims.get(key)
            if holders is None:
                self.ask(key, None)
                continue
            if isinstance(holders, list):
                askers.update(holders)
                holders = min(holders, key=lambda ref: precedes(services[ref]))
            askers.add(holders)
            self.ask(key, self._asked(holders, key).value)
        return askers

    def _asked(self, ref: Ref, key: bytes) -> Asked:
        return next(asked for each, asked in self._asks[ref] if each == key)

    def lost(self, ref: Ref, services: Mapping[Ref, Service]) -> list[Problem]:
        """Name the frontends that a service asks for and another one has."""
        fields: dict[str, set[str]] = {}
        for key, asked in self._asks.get(ref, ()):
            holders = self._claims[key]
            if isinstance(holders, list):
                owner = min(holders, key=lambda each: precedes(services[each]))
                if owner != ref:
                    why = precedence(services[owner], services[ref])
                    fields.setdefault(asked.field, set()).add(f"{frontend_name(key)} belongs to {owner}, {why}")
        return [Problem(ref, field, "; ".join(sorted(texts))) for field, texts in fields.items()]

    def full(self) -> list[Problem]:
        """Name the services whose frontends have no room."""
        counts: dict[Ref, int] = {}
        for key in self.unfit:
            for ref in self._owners(key):
                counts[ref] = counts.get(ref, 0) + 1
        size = self._table.spec.max_entries
        text = "needs {} more frontends, and table services ({} entries) is full"
        return [Problem(ref, "spec.ports", text.format(count, size)) for ref, count in counts.items()]

    def _owners(self, key: bytes) -> list[Ref]:
        if _is_mark(key):
            found = [ref for ref, addresses in self._ips_of.items() if key[:16] in addresses]
            return found or [self._node]
        holders = self._claims.get(key)
        if isinstance(holders, list):
            return [ref for ref in holders if self._asked(ref, key).value == self.want.get(key)]
        return [holders] if holders else []

    # What the kernel has

    def read_back(self, *, keep: bool) -> None:
        """Look at the whole table; what nobody wants stays with ``keep``, until somebody knows its set."""
        self.uses = {}
        super().read_back(keep=keep)
        self._strays = {}
        for key in self._unknown:
            for identity in sets_of(self.have[key]):
                self._strays.setdefault(identity, []).append(key)

    def know_sets(self, sets: Collection[int]) -> None:
        """Let go of kept frontends of sets that somebody knows by now: he would have asked for them."""
        if self._strays:
            for identity in self._strays.keys() & sets:
                self.abandon(self._strays.pop(identity))

    def know_all(self) -> None:
        """Forget what was kept because somebody might want it."""
        super().know_all()
        self._strays = {}

    def _set(self, key: bytes, value: bytes | None) -> None:
        before = self.have.get(key)
        if before != value:
            _count(self.uses, before, value)
            self.turns += 1
        super()._set(key, value)

    def ask(self, key: bytes, value: bytes | None) -> None:
        """Want a value under a key, or with None nothing."""
        _count(self.leads, self.want.get(key), value)
        super().ask(key, value)

    def _may(self, key: bytes) -> bool:
        return super()._may(key) and all(map(self._ready, sets_of(self.want[key])))

    def _ranked(self, keys: Iterable[bytes]) -> Iterable[bytes]:
        return sorted(keys, key=_is_mark)  # an address refuses ports that are no frontends: these before that

    def waiting_for(self, identity: int) -> list[bytes]:
        """Return the frontends that are to lead to a set which is not there, and lead elsewhere meanwhile."""
        waiting = [key for key in self._dirty if key in self.have and key in self.want]
        return [key for key in waiting if identity in sets_of(self.want[key])]

    def give_up(self, keys: Iterable[bytes]) -> None:
        """Remove frontends that are wanted, for what they lead to must go to make room for what they will lead to."""
        for key in keys:
            self._table.delete(key)
            self._set(key, None)

    # Where packets go

    def resolve(self, frontend: bytes, at: Mark = Mark.NODEPORTS) -> bytes | None:
        """Return the value that a packet to a packed ``Frontend`` meets; None: no service's.

        Addresses with a mark of ``at`` have NodePorts.
        """
        found = self.have.get(frontend)
        if found is None:
            marks = self.have.get(mark_key(frontend[:16]))
            if marks is None or not abi.Service.unpack(marks).marks & at:
                return None
            any_address = abi.V4_PREFIX + bytes(4) if frontend.startswith(abi.V4_PREFIX) else bytes(16)
            found = self.have.get(any_address + frontend[_PORT])
        return found
