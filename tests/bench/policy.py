"""How long policies take to the tables, and how many entries they are, with 10,000 of them and 150,000 pods."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ebpfnet import abi, policing
from ebpfnet.maps import kernel
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Change, Delete, Kind, Namespace, Pod, Ref, Synced, Upsert
from ebpfnet.model.peers import pack
from ebpfnet.reconcile.reconciler import Reconciler
from tests.bench import policy_objects as objects
from tests.bench.figures import Figure, at_most, percentile

KINDS: dict[str, Callable[[abi.TableSpec], Table]] = {"memory": MemoryTable, "kernel": kernel.create}
ROUNDS = 300
COUNTED = ("peers", "peer_blocks", "rules", "rule_ports")


def _wires(count: int) -> dict[str, abi.Wire]:
    names = [f"{objects.team(n)}/pod-{n}" for n in objects.locals_()][:count]
    return {name: abi.Wire(index + 2, bytes(6)) for index, name in enumerate(names)}


def _take(reconciler: Reconciler, changes: Iterable[Change]) -> list[float]:
    """Return how many milliseconds each change took; what it left is removed before the next."""
    taken = []
    for change in changes:
        begin = time.perf_counter_ns()
        reconciler.apply([change])
        taken.append((time.perf_counter_ns() - begin) / 1e6)
    while (due := reconciler.next_retry) is not None:
        time.sleep(max(0.0, due - time.monotonic()))
        reconciler.retry()
    return taken


def _entries(tables: Mapping[str, Table]) -> dict[str, int]:
    return {name: sum(1 for _ in tables[name].items()) for name in COUNTED}


def once(kind: str) -> dict[str, Any]:
    """Measure once, over tables of a kind."""
    tables = {name: KINDS[kind](spec) for name, spec in abi.TABLES.items()}
    reconciler = Reconciler(tables, objects.HERE)
    reconciler.set_wires(_wires(objects.LOCAL))
    reconciler.apply(map(Upsert, objects.facts()))
    gc.collect()
    gc.freeze()  # as the agent does
    begin = time.perf_counter()
    reconciler.apply([Synced()])
    told: dict[str, Any] = {"first_s": time.perf_counter() - begin}
    _take(reconciler, ())
    told["entries"] = _entries(tables)
    told["rivals"] = _rivals(reconciler)
    fresh = range(objects.PODS, objects.PODS + ROUNDS)
    told["pod_ms"] = _take(reconciler, [Upsert(objects.peer(n)) for n in fresh])
    told["pod_gone_ms"] = _take(reconciler, [Delete(objects.peer(n).ref) for n in fresh])
    there = reconciler.policies.peers.want
    meant = [n for n in range(objects.PODS) if pack(objects.address(n)) in there][:ROUNDS]
    new = [objects.peer(n, at=objects.PODS + n, name="new") for n in meant]
    told["meant_ms"] = _take(reconciler, map(Upsert, new))
    told["meant_gone_ms"] = _take(reconciler, [Delete(each.ref) for each in new])
    _take(reconciler, map(Upsert, new))
    told["relabelled_ms"] = _take(reconciler, [Upsert(replace(each, labels=())) for each in new])
    local = [objects.selecting(n) for n in objects.locals_()]
    added = [objects.policy(number + objects.POLICIES) for number in local]
    told["policy_ms"] = _take(reconciler, map(Upsert, added))
    told["policy_gone_ms"] = _take(reconciler, [Delete(each.ref) for each in added])
    edits = [objects.policy(number, salt=1) for number in local]
    told["edit_ms"] = _take(reconciler, map(Upsert, edits))
    before = sum(table.writes for table in tables.values())  # type: ignore[attr-defined]
    again = Reconciler(tables, objects.HERE)
    again.set_wires(_wires(objects.LOCAL))
    again.apply(map(Upsert, objects.facts()))
    again.apply([Upsert(replace(each, labels=())) for each in new])
    again.apply([*map(Upsert, edits), Synced()])
    told["restart_writes"] = sum(table.writes for table in tables.values()) - before  # type: ignore[attr-defined]
    told |= _asked(reconciler) if kind == "memory" else {}
    return told | _heavy(kind)


def _asked(reconciler: Reconciler) -> dict[str, Any]:
    """Measure what `policy list` and `policy diff` ask: how long the agent holds its events up, and what it takes."""
    laps = [time.perf_counter()]

    def lap() -> float:
        laps.append(time.perf_counter())
        return laps[-1] - laps[-2]

    seen = policing.look(reconciler)
    told: dict[str, Any] = {"look_ms": lap() * 1e3}
    policing.policies(seen, graceful=False)
    told["list_s"] = lap()
    held = policing.hold(reconciler)
    told["hold_ms"] = lap() * 1e3
    answer = json.dumps(policing.facts(held, graceful=False))
    told["facts_s"] = lap()
    gc.disable()  # as `policy diff` does
    Reconciler({name: MemoryTable(spec) for name, spec in abi.TABLES.items()}, objects.HERE).apply(
        [*policing.read(json.loads(answer)), Synced()]
    )
    told["tables_s"] = lap()
    gc.enable()
    return told


def _heavy(kind: str) -> dict[str, Any]:
    tables = {name: KINDS[kind](spec) for name, spec in abi.TABLES.items()}
    reconciler = Reconciler(tables, objects.HERE)
    reconciler.set_wires({"heavy/pod": abi.Wire(2, bytes(6))})
    ref = Ref(Kind.POD, "heavy", "pod")
    heavy = [Upsert(objects.heavy(number)) for number in range(objects.DISTINCT)]
    namespace = Namespace(Ref(Kind.NAMESPACE, "", "heavy"), ())
    pod = Pod(ref, objects.HERE, (objects.address(1),), (), (), host_network=False)
    begin = time.perf_counter()
    reconciler.apply([Upsert(namespace), Upsert(pod), *heavy, Synced()])
    told = {"heavy_s": time.perf_counter() - begin}
    gc.collect()
    gc.freeze()  # as the agent does
    _take(reconciler, ())
    changes = [Upsert(objects.heavy(n, salt=50 * (turn % 2))) for turn in range(1, 3) for n in range(0, 250, 10)]
    taken = []
    for change in changes:
        taken += _take(reconciler, [change])
    return told | {"heavy_edit_ms": taken, "heavy_entries": _entries(tables)}


def _rivals(reconciler: Reconciler) -> dict[str, int]:
    """Count what other designs hold for the same pods and objects.

    Sets of addresses, one for each selector (as ipsets have it), plus a rule for each use of one;
    flattened, an entry for each pod, peer address, direction and range of ports (the identity of a pod is its own).
    """
    classes, regimes, groups = reconciler.policies.classes, reconciler.policies.regimes, reconciler.policies
    members: dict[int, int] = {}
    for cell in classes.cells.by_number.values():
        for answer in cell.answers:
            members[answer] = members.get(answer, 0) + cell.count
    uses = flat = 0
    for group, pods in groups.pods_of().items():
        subject = regimes.subjects[group]
        for each in reconciler.policies.subjects.policies(subject).values():
            uses += sum(max(1, len(rule.peers)) * max(1, len(rule.ports)) for rule in each.ingress or ())
        for direction in abi.Direction:
            for number in regimes.numbers(group, direction):
                flat += classes.cells.by_number[number].count * len(pods)
    return {"sets": sum(members.values()) + uses, "flat": flat}


def run() -> list[Figure]:
    """Measure over tables in memory and over the kernel's."""
    found: list[Figure] = []
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.bench.policy", kind]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        head = f"policy ({kind}):"
        found += [
            at_most(f"{head} first compile, 10,000 policies, 150,000 pods", told["first_s"], "s", 0.5),
            at_most(f"{head} a pod anywhere, p50", percentile(told["pod_ms"], 50), "ms", 0.3),
            at_most(f"{head} a pod that this node's policies mean, p50", percentile(told["meant_ms"], 50), "ms", 0.3),
            at_most(f"{head} such a pod with other labels, p50", percentile(told["relabelled_ms"], 50), "ms", 0.3),
            at_most(f"{head} such a pod gone, p50", percentile(told["meant_gone_ms"], 50), "ms", 0.3),
            Figure(f"{head} a pod that this node's policies mean, p99", percentile(told["meant_ms"], 99), "ms"),
            Figure(f"{head} a pod anywhere, p99", percentile(told["pod_ms"], 99), "ms"),
            Figure(f"{head} a pod gone, p50", percentile(told["pod_gone_ms"], 50), "ms"),
            at_most(f"{head} a policy for pods of this node, p99", percentile(told["policy_ms"], 99), "ms", 20),
            at_most(f"{head} a policy gone, p99", percentile(told["policy_gone_ms"], 99), "ms", 20),
            at_most(f"{head} a policy of this node's changed, p99", percentile(told["edit_ms"], 99), "ms", 20),
            at_most(f"{head} restart, entries written", told["restart_writes"], "entries", 0),
            at_most(f"{head} 12,500 rules of one endpoint", told["heavy_s"], "s", 2),
            at_most(f"{head} one policy of those changed, p99", percentile(told["heavy_edit_ms"], 99), "ms", 20),
        ]
        if kind == "memory":
            ours = sum(told["entries"].values())
            for name, words in (("sets", "sets of addresses"), ("flat", "an entry per pod and peer")):
                rival = told["rivals"][name]
                found.append(Figure("policy: entries", ours, "entries", words, rival, ours / max(1, rival)))
            found += [Figure(f"policy: entries of {name}", n, "entries") for name, n in told["entries"].items()]
            asked = [
                ("list, events wait for", "look_ms", "ms"),
                ("list, the agent's answer", "list_s", "s"),
                ("diff, events wait for", "hold_ms", "ms"),
                ("diff, the agent's answer", "facts_s", "s"),
                ("diff, the tables as they would be", "tables_s", "s"),
            ]
            found += [Figure(f"policy {text}", told[name], unit) for text, name, unit in asked]
    return found


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1])))
