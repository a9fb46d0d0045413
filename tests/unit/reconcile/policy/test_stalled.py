"""A program reads one table after the other, and may stand still in between: what it finds out is of before or after.

Where it would not be, the generation was raised meanwhile, and the program asks again (``bpf/lib/policy.h ask_both``).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.maps.judge import judge
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Change, IPBlock, PodPeer, PolicyPort, PolicyRule, Synced, Upsert
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle
from tests.unit.reconcile.policy.test_paths import CLOSED, PHASES
from tests.unit.reconcile.policy.world import (
    BASE,
    PROBES,
    TCP,
    WIRES,
    namespace,
    peer,
    policy,
    scratch,
    series,
    verdicts,
    where,
)
from tests.unit.reconcile.test_paths import Checked, final

READ = ("pods", "peers", "peer_blocks", "rules", "rule_ports", "generations")
LOOKUPS = 5
"""As many as a verdict takes, at most: after each but the last a program may stand still."""

Moment = Mapping[str, Table]


class Stalled(Mapping[str, Table]):
    """The tables as a program finds them that stands still after so many lookups."""

    def __init__(self, first: Moment, then: Moment, lookups: int) -> None:
        self._first, self._then, self._left = first, then, lookups

    def __getitem__(self, name: str) -> Table:
        self._left -= 1
        return (self._first if self._left >= 0 else self._then)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)


def moment(tables: Mapping[str, Table]) -> Moment:
    """Return the tables as they are now."""
    found = {}
    for name in READ:
        found[name] = table = MemoryTable(tables[name].spec)
        table.entries = dict(tables[name].items())
    return found


def generation(now: Moment, first: Moment, ends: Sequence[bytes]) -> list[bytes | None]:
    """Return what a flow between two addresses is judged under, as the datapath counts it."""
    pods = (first["pods"].get(each) for each in ends)
    slots = [int.from_bytes(value[:4], "little") % abi.GENERATIONS for value in pods if value]
    return [now["generations"].get(slot.to_bytes(4, "little")) for slot in slots]


def look(moments: Sequence[Moment], states: Sequence[Sequence[object]], probe: int, i: int, j: int, count: int) -> None:
    """Let a program stand still after so many lookups, from one moment to another."""
    first, then, asked = moments[i], moments[j], PROBES[probe]
    ends = asked[0], asked[1]
    if generation(first, moments[0], ends) != generation(then, moments[0], ends):
        return
    found = tuple(judge(Stalled(first, then, count), *asked)._replace(peers=0, group=0))
    mine = asked[0] if asked[4] else asked[1]
    assert found in {state[probe] for state in states} or (found == CLOSED and not moments[0]["pods"].get(mine))


class Watched:
    """An agent over tables whose every moment is kept."""

    def __init__(self) -> None:
        self.tables = memory_tables(lambda table: Checked(table.spec))
        self.seen: list[Change] = []
        self.clock = Clock()
        self.reconciler = self._begin()
        self.reconciler.apply([Synced()])

    def _begin(self) -> Reconciler:
        reconciler = Reconciler(self.tables, "node-a", self.clock)
        reconciler.set_wires(WIRES)
        return reconciler

    def take(self, *changes: Change, restart: bool = False) -> tuple[list[Moment], list[Sequence[object]]]:
        """Let something happen; returns each moment on the way, and what was said before and is said after.

        ``restart``: while there is no agent.
        """
        states = [verdicts(self.tables)]
        moments = [moment(self.tables)]
        for name in READ:
            self.tables[name].check = lambda: moments.append(moment(self.tables))  # type: ignore[attr-defined]
        self.seen += changes
        if restart:
            self.reconciler = self._begin()
        self.reconciler.apply([*final(self.seen), Synced()] if restart else changes)
        settle(self.reconciler, self.clock)
        for name in READ:
            self.tables[name].check = lambda: None  # type: ignore[attr-defined]
        return moments, [*states, verdicts(scratch(final(self.seen)))]


def look_at_all(moments: Sequence[Moment], states: Sequence[Sequence[object]]) -> None:
    """Let programs stand still after every lookup, from every moment to every other."""
    probes = [number for number, probe in enumerate(PROBES) if probe[2:4] == (TCP, 80)]
    for i in range(len(moments)):
        for j in range(i + 1, len(moments)):
            for probe in probes:
                for count in range(1, LOOKUPS):
                    look(moments, states, probe, i, j, count)


OTHER = "kubernetes.io/metadata.name", "other"
WEB, DB, RED = (
    PodPeer(where("app", "web"), None),
    PodPeer(where("app", "db"), None),
    PodPeer(EVERYTHING, where("team", "red")),
)
WIDE, NARROW = (IPBlock(ipaddress.ip_network(f"10.0.{each}")) for each in ("0.0/16", "1.0/24"))
PORT = (PolicyPort(TCP, 80, 80),)


@pytest.mark.parametrize(
    "change",
    [
        Upsert(policy("q", ingress=[PolicyRule((DB,), ())], egress=[PolicyRule((PodPeer(EVERYTHING, None),), ())])),
        Upsert(
            policy("q", ingress=[PolicyRule((WIDE,), ()), PolicyRule((WEB,), PORT)], egress=[PolicyRule((NARROW,), ())])
        ),
        Upsert(policy("q", ingress=[PolicyRule((), ())], egress=[PolicyRule((RED,), PORT)])),
        Upsert(peer("x", (("app", "db"),))),
        Upsert(namespace("other", (OTHER,))),
    ],
    ids=["rules", "blocks", "everybody", "peer", "namespace"],
)
def test_whoever_stands_still_in_between_sees_before_or_after(change: Change):
    agent = Watched()
    for each in (*BASE, Upsert(policy("p", where("app", "web"), egress=[PolicyRule((RED, WEB), ())]))):
        agent.take(each)
    look_at_all(*agent.take(change))


def test_a_group_that_others_get_after_a_restart_says_something_else_to_nobody_who_left_it():
    agent = Watched()
    for each in (*BASE, Upsert(policy("p", where("app", "db"), ingress=None))):
        agent.take(each)
    look_at_all(*agent.take(Upsert(policy("p", where("app", "web"), ingress=None, egress=[])), restart=True))


@settings(max_examples=20, deadline=None, phases=PHASES, derandomize=True)
@given(series, st.integers(0, 1000))
def test_whatever_happens_whoever_stands_still_sees_before_or_after(changes, seed: int):
    agent, draw = Watched(), random.Random(seed)
    for change in changes:
        moments, states = agent.take(change)
        for _ in range(300 if len(moments) > 1 else 0):
            i, j = sorted(draw.sample(range(len(moments)), 2))
            look(moments, states, draw.randrange(len(PROBES)), i, j, draw.randrange(1, LOOKUPS))
