"""Cluster objects in, the sorted dump of the maps out: one YAML file a case.

``host`` is what the node is to services, ``steps`` are lists of ``apply`` (objects) and ``delete`` (kind, name);
``maps`` is the dump after the last, ``policies`` what the tables of policies say, ``problems`` what was refused. Each
case also runs with its steps' objects backwards and shuffled, split over a restart, and with failing writes: the end
must be the same. ``make golden-update`` writes what was seen; read the diff.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpfnet.maps import dump
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.model.facts import Change, Delete, Kind, Ref, Refused, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.watch.decode import decode
from tests import policy_dump
from tests.cluster import host, memory_tables, wire

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
NODE = "node-a"


def changes_of(step: dict[str, Any]) -> list[Change]:
    out: list[Change] = []
    for item in step.get("apply", ()):
        found = decode(item)
        out += [Refused(problem) for problem in found.problems]
        out += [Upsert(found.fact)] if found.fact else []
    for item in step.get("delete", ()):
        namespace = (
            ""
            if item["kind"] in {"Node", "Namespace", "ServiceCIDR", "ClusterNetworkPolicy"}
            else item.get("namespace", "default")
        )
        out.append(Delete(Ref(Kind(item["kind"]), namespace, item["name"])))
    return out


def ref_of(change: Change) -> Ref:
    match change:
        case Upsert(fact):
            return fact.ref
        case Refused(problem):
            return problem.ref
        case Delete(ref):
            return ref
        case _:
            raise AssertionError(change)


class Play:
    """A case being played on tables of its own."""

    def __init__(self, case: dict[str, Any], failing: int | None = None) -> None:
        def wrap(table):
            return table if failing is None else FaultyTable(table, 0.3, failing, limit=30)

        self.tables = memory_tables(wrap)
        self.now = 0.0
        self.wires = {name: wire(number) for name, number in case.get("wires", {}).items()}
        self.host = host(**case.get("host", {}))
        self.start()

    def start(self) -> None:
        self.reconciler = Reconciler(self.tables, NODE, lambda: self.now)
        self.reconciler.set_host(self.host)
        self.reconciler.set_wires(self.wires)

    def settle(self) -> None:
        for _ in range(300):
            due = self.reconciler.next_retry
            if due is None:
                return
            self.now = max(self.now, due)
            self.reconciler.retry()
        pytest.fail("never settled")

    def result(self) -> dict[str, list[str]]:
        self.settle()
        rules = policy_dump.lines(self.tables)
        maps = dump.summary(self.tables)
        said = {"problems": [str(p) for p in self.reconciler.problems], "maps": maps}
        return said | ({"policies": rules} if rules else {})


def by_object(steps: list[list[Change]]) -> list[list[Change]]:
    """The last word on each object, as groups whose order does not matter."""
    groups: dict[Ref, list[Change]] = {}
    for step in steps:
        seen: set[Ref] = set()
        for change in step:
            ref = ref_of(change)
            if ref not in seen:
                # A refusal without a new version leaves the old one in place.
                keeps = isinstance(change, Refused) and all(isinstance(c, Refused) for c in step if ref_of(c) == ref)
                groups[ref] = [c for c in groups.get(ref, []) if isinstance(c, Upsert)] if keeps else []
                seen.add(ref)
            groups[ref].append(change)
    return list(groups.values())


def forwards(case, steps) -> Play:
    play = Play(case)
    play.reconciler.apply([*steps[0], Synced()])
    for step in steps[1:]:
        play.reconciler.apply(step)
    return play


def restarted(case, steps) -> Play:
    play = forwards(case, steps)
    play.start()
    play.reconciler.apply([*itertools.chain(*by_object(steps)), Synced()])
    return play


def failing(case, steps) -> Play:
    play = Play(case, failing=7)
    play.reconciler.apply([Synced()])
    for step in steps:
        play.reconciler.apply(step)
    play.settle()
    return play


def reordered(case, steps, order) -> Play:
    play = Play(case)
    groups = by_object(steps)
    order(groups)
    play.reconciler.apply([*itertools.chain(*groups), Synced()])
    return play


WAYS = {
    "forwards": forwards,
    "backwards": lambda case, steps: reordered(case, steps, list.reverse),
    "shuffled": lambda case, steps: reordered(case, steps, random.Random(1).shuffle),
    "restarted": restarted,
    "failing": failing,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path, way: str):
    case = yaml.safe_load(path.read_text())
    steps = [changes_of(step) for step in case["steps"]]
    seen = WAYS[way](case, steps).result()
    if os.environ.get("EBPFNET_GOLDEN_UPDATE") and way == "forwards":
        head = path.read_text().partition("\nproblems:")[0].partition("\npolicies:")[0].partition("\nmaps:")[0]
        path.write_text(f"{head}\n{yaml.safe_dump(seen, sort_keys=True, width=200)}")
        case = yaml.safe_load(path.read_text())
    policies = {"policies": case["policies"]} if "policies" in case else {}
    assert seen == {"problems": case.get("problems", []), "maps": case["maps"], **policies}


def test_there_are_cases():
    assert len(CASES) >= 12
