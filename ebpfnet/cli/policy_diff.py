"""``ebpfnet policy diff``."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from ebpfnet import abi
from ebpfnet.abi import Direction, DropReason, FlowFlag, FlowState, Verdict
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup
from ebpfnet.cli.sets import Sets
from ebpfnet.exits import BadInput
from ebpfnet.maps.dump import host_port, protocol_name
from ebpfnet.maps.judge import Judgement, Trie, judge
from ebpfnet.maps.memory import MemoryTable

COLUMNS = ("node", "effect", "protocol", "source", "destination", "direction", "now", "then", "seen")
JUDGED = ("pods", "peers", "peer_blocks", "rules", "rule_ports", "names")
_POLICIES = {DropReason.POLICY_EGRESS, DropReason.POLICY_INGRESS, DropReason.NO_RULES}
_OURS = FlowFlag.REPLY | FlowFlag.HOST | FlowFlag.OWN | FlowFlag.BESIDE
"""Entries that are no question of their own, or that no policy is asked about."""


class Asked(NamedTuple):
    """A connection as policies see it."""

    source: bytes
    destination: bytes
    protocol: int
    port: int


class Said(NamedTuple):
    """What is decided about a connection: by the first of its two sides that denies, else by one that audits."""

    verdict: Verdict
    direction: str
    rule: str
    graceful: bool


class Verdicts:
    """What tables say of connections; many differ in nothing but the client's port."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        blocks = tables["peer_blocks"]
        self._tables = {**tables, "peer_blocks": Trie(blocks.spec, blocks.items())}
        self._said: dict[Asked, Said] = {}

    def of(self, asked: Asked) -> Said:
        """Return what is decided about a connection."""
        found = self._said.get(asked)
        if found is None:
            found = self._said[asked] = _say(self._tables, asked)
        return found


@click.command()
@click.option("-f", "--filename", "paths", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
              help="Policies that would be applied: a file, a folder, or - for standard input.")  # fmt: skip
@click.option("--without", multiple=True, metavar="[NAMESPACE/]NAME", shell_complete=candidates.policies,
              help="A policy that would be deleted.")  # fmt: skip
@nodes.options
@form.options
def diff(
    instances: list[nodes.Instance],
    paths: tuple[Path, ...],
    without: tuple[str, ...],
    output: str,
    *,
    headers: bool,
) -> None:
    """Say what policies would change before they are applied: which connections they cut, and what they open.

    The connections of the flow table and the last packets that policies dropped are judged again, with the policies of
    the files in place of those of the same name. CUT: dropped at the next packet. LEFT: the same, but the policy is
    graceful. OPENED: dropped now, and not any more. AUDITED: passes, and is reported. What the cluster is, the node's
    agent says; nothing is changed, and the exit code does not depend on what is found.
    """
    if not paths and not without:
        raise click.UsageError("-f PATH or --without NAME is missing")
    gc.disable()  # all that a node knows is read and kept: with 150,000 pods, half of the time is looking for garbage
    changes, complaints = _changes(paths)
    found = [_of_node(instance, tables, changes, without) for instance, tables in nodes.each(instances)]
    for each in found:
        complaints |= dict.fromkeys(each["problems"])
    for text in complaints:
        click.echo(f"ebpfnet: {text}", err=True)
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    if rows := [row for each in found for row in each["changes"]]:
        form.show(rows, COLUMNS, output, headers=headers)
    for each in found:
        on = f"{each['node']}: " if each["node"] else ""
        counts = ", ".join(f"{each[name]} {text}" for name, text in _SUMS if each[name] or name == "cut")
        click.echo(f"{on}{each['flows']} open connections, {counts}")


_SUMS = (
    ("cut", "would be cut"),
    ("left", "not allowed any more, but left until they end"),
    ("audited", "only reported"),
    ("opened", "that are dropped now would pass"),
)


def _changes(paths: Iterable[Path]) -> tuple[list[Any], dict[str, None]]:
    """Return the policies of the files, and what is wrong with them: one that is refused isolates, as it would."""
    from ebpfnet.model.facts import ClusterNetworkPolicy, NetworkPolicy, Refused, Upsert
    from ebpfnet.watch import manifests

    changes = manifests.read(paths)
    complaints = dict.fromkeys(str(change.problem) for change in changes if isinstance(change, Refused))
    mine = [
        change
        for change in changes
        if isinstance(change, Upsert) and isinstance(change.fact, NetworkPolicy | ClusterNetworkPolicy)
    ]
    if paths and not mine:
        raise BadInput("; ".join(complaints) or "there is no policy in these files")
    return mine, complaints


def _of_node(
    instance: nodes.Instance, tables: Mapping[str, Any], changes: list[Any], without: tuple[str, ...]
) -> dict[str, Any]:
    from ebpfnet.status import ask

    answer = ask(instance.run, "facts", timeout_s=60)
    live = Verdicts({name: _copy(tables[name]) for name in JUDGED})
    filled, problems = _then(answer, tables, changes, without)
    then = Verdicts(filled)
    rows: list[dict[str, Any]] = []
    flows = 0
    lookup = Lookup(tables)
    for key, flow in _flows(tables):
        flows += 1
        asked = Asked(key.source, flow.to.destination, key.protocol, flow.to.destination_port)
        rows += _compare(lookup, live, then, asked, key.source_port, "flow")
    for tuple_, asked in _dropped(tables):
        rows += _compare(lookup, live, then, asked, tuple_.source_port, "drop sample")
    rows = [{"node": instance.node, **row} for row in rows]
    counts = {name: sum(1 for row in rows if row["effect"] == name) for name, _ in _SUMS}
    return {"node": instance.node, "flows": flows, **counts, "problems": problems, "changes": rows}


def _copy(table: Any) -> MemoryTable:
    """Read a table once: each connection asks it several times."""
    found = MemoryTable(table.spec)
    found.entries = dict(table.items())
    return found


def _then(
    answer: Mapping[str, Any], tables: Mapping[str, Any], changes: list[Any], without: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return the tables as they would be, filled by the agent's own code, and what is wrong then."""
    from ebpfnet import policing
    from ebpfnet.cli.policy import names
    from ebpfnet.model.facts import Delete, Synced
    from ebpfnet.reconcile.reconciler import Reconciler

    found: dict[str, Any] = {name: MemoryTable(table.spec) for name, table in tables.items()}
    reconciler = Reconciler(found, answer["node"], graceful=answer["graceful"])
    known = list(policing.read(dict(answer)))
    reconciler.apply([*known, *changes])
    gone = {name for text in without for name in names(text)}
    refs = [each.fact.ref for each in known if str(each.fact.ref) in gone]
    if without and not refs:
        raise BadInput(f"the agent knows no policy {' or '.join(without)}")
    reconciler.apply([Delete(ref) for ref in refs])
    lookup = Lookup(tables)
    reconciler.set_wires({lookup.pods[key]: abi.Pod.unpack(value).wire for key, value in tables["pods"].items()})
    reconciler.apply([Synced()])
    mine = {change.fact.ref for change in changes}
    return found, [str(problem) for problem in reconciler.problems if problem.ref in mine]


def _flows(tables: Mapping[str, Any]) -> Iterator[tuple[abi.Tuple, abi.Flow]]:
    for key, value in tables["flows"].items():
        flow = abi.Flow.unpack(value)
        if not flow.flags & _OURS and flow.state != FlowState.CLOSING:
            yield abi.Tuple.unpack(key), flow


def _dropped(tables: Mapping[str, Any]) -> Iterator[tuple[abi.Tuple, Asked]]:
    """Yield what policies dropped lately, each kind once; a service's address stands for each of its backends."""
    sets = Sets(tables)
    frontends = {frontend.key: frontend.inside for frontend in sets.frontends()}
    seen = set()
    samples = [abi.DropSample.unpack(value) for _, value in tables["drop_samples"].items()]
    for sample in samples:
        key = sample.tuple
        if not sample.sequence or sample.reason not in _POLICIES:
            continue
        called = frontends.get(abi.Frontend(key.destination, key.destination_port, key.protocol))
        ends = sets.backends(called) if called else ()
        for each in ends or (abi.Backend(key.destination, key.destination_port),):
            asked = Asked(key.source, each.address, key.protocol, each.port)
            if asked not in seen:
                seen.add(asked)
                yield key, asked


def _compare(
    lookup: Lookup, live: Verdicts, then: Verdicts, asked: Asked, source_port: int, seen: str
) -> list[dict[str, Any]]:
    before, after = live.of(asked), then.of(asked)
    if (before.verdict == Verdict.DENY) == (after.verdict == Verdict.DENY) and (
        after.verdict != Verdict.AUDIT or before.verdict == Verdict.AUDIT
    ):
        return []
    if after.verdict == Verdict.DENY:
        effect = "left" if after.graceful else "cut"
    else:
        effect = "opened" if before.verdict == Verdict.DENY else "audited"
    decides = before if effect == "opened" else after
    return [
        {
            "effect": effect,
            "protocol": protocol_name(asked.protocol),
            "source": _end(lookup, asked.source, source_port),
            "destination": _end(lookup, asked.destination, asked.port),
            "direction": decides.direction,
            "now": before.rule or before.verdict.name.lower(),
            "then": after.rule or after.verdict.name.lower(),
            "seen": seen,
        }
    ]


def _end(lookup: Lookup, address: bytes, port: int) -> str:
    pod = lookup.pods.get(address)
    return f"{host_port(address, port)} ({pod})" if pod else host_port(address, port)


def _say(tables: Mapping[str, Any], asked: Asked) -> Said:
    """Ask both sides, as the datapath does: the sender's first."""
    found: list[tuple[str, Judgement]] = [
        (way.name.lower(), judge(tables, *asked, way)) for way in (Direction.EGRESS, Direction.INGRESS)
    ]
    if asked.source == asked.destination:
        return Said(Verdict.ALLOW, "", "", graceful=False)
    for verdict in (Verdict.DENY, Verdict.AUDIT, Verdict.ALLOW):
        for way, each in found:
            if each.verdict == verdict and (each.rule or verdict != Verdict.ALLOW):
                raw = tables["names"].get(each.rule.to_bytes(8, "little"))
                name = abi.unpack_name(raw) if raw else ("its rules are missing" if each.rules_missing else "")
                return Said(verdict, way, name, each.graceful)
    return Said(Verdict.ALLOW, "", "", graceful=False)
