"""``ebpfnet policy explain``."""

from __future__ import annotations

import ipaddress
import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click

from ebpfnet import abi
from ebpfnet.abi import Direction, Mark, Verdict
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import NoSuchName, full_name
from ebpfnet.cli.rules import Rules
from ebpfnet.cli.sets import Sets
from ebpfnet.exits import BadInput, Disagreement, EbpfnetError, NotRunning
from ebpfnet.maps import pins
from ebpfnet.maps.hits import policies_by
from ebpfnet.maps.judge import Judgement, judge

PROTOCOLS = {"TCP": abi.Protocol.TCP, "UDP": abi.Protocol.UDP, "SCTP": abi.Protocol.SCTP, "ICMP": abi.Protocol.ICMP}


class End(NamedTuple):
    """One end of a connection: a packed address, and the pod's name where it is one's."""

    address: bytes
    pod: str

    def __str__(self) -> str:
        plain = str(abi.unpack_address(self.address))
        return f"{self.pod} ({plain})" if self.pod else plain

    @property
    def version(self) -> int:
        """4 or 6."""
        return abi.unpack_address(self.address).version


class Place(NamedTuple):
    """A node, and what its tables say."""

    instance: nodes.Instance
    rules: Rules


@click.command()
@click.option("--from", "source", required=True, metavar="NAMESPACE/POD|IP", shell_complete=candidates.pods)
@click.option("--to", "destination", required=True, metavar="NAMESPACE/POD|IP", shell_complete=candidates.pods,
              help="Of a service's address its backends are asked about.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="The destination's; ICMP has none.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS), case_sensitive=False), default="TCP", show_default=True)
@click.option("--confirm/--no-confirm", default=True, help="Also send the packet through the programs.")
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where compiled programs are kept.")
@nodes.options
@form.options
def explain(
    instances: list[nodes.Instance],
    source: str,
    destination: str,
    port: int | None,
    protocol: str,
    output: str,
    *,
    confirm: bool,
    cache: Path | None,
    headers: bool,
) -> None:
    """Say which policy and rule decide about a connection, where it leaves its pod and where it comes to one.

    Found in the live tables, and confirmed by a packet that is sent through the same programs over a copy of them:
    nothing of the node is touched. When the two disagree, the exit code is 11.
    """
    del headers
    if port is None and protocol.upper() != "ICMP":
        raise click.UsageError("--port is missing (only --protocol ICMP can do without)")
    with ExitStack() as stack:
        places = [Place(each, Rules(stack.enter_context(pins.opened(each.pins)))) for each in instances]
        asked = [
            (sender, target, at)
            for sender, (target, at) in itertools.product(
                _find(places, source),
                _reached(places, _find(places, destination), port or 0, PROTOCOLS[protocol.upper()]),
            )
            if sender.version == target.version
        ]
        if not asked:
            raise BadInput(f"{source} and {destination} have no address family in common")
        rows = [row for each in asked for row in _ways(places, *each, PROTOCOLS[protocol.upper()])]
        if confirm:
            _confirm(places, rows, cache)
    for row in rows:
        row.pop("_")
    if output in {"json", "yaml"}:
        form.document(rows, output)
    else:
        click.echo("\n".join(line for row in rows for line in _lines(row)))
    wrong = [row for row in rows if row["confirmed"] is False]
    if wrong:
        raise Disagreement(
            "the programs do NOT do what the tables say: this is a bug of ebpfnet, or the tables changed"
        )


def _find(places: list[Place], text: str) -> list[End]:
    """Return the ends that a word means, one for each address; raises ``NoSuchName``."""
    try:
        raw = abi.pack_address(ipaddress.ip_address(text))
    except ValueError:
        pass
    else:
        return [
            End(raw, next((place.rules.lookup.pods[raw] for place in places if raw in place.rules.lookup.pods), ""))
        ]
    wanted = full_name(text)
    found = {raw: None for place in places for raw, pod in place.rules.lookup.pods.items() if pod == wanted}
    if not found:
        found = {raw: None for place in places for raw in _elsewhere(place.instance, wanted)}
    if not found:
        raise NoSuchName(f"no pod {wanted!r} here, and no agent knows its address: give the address")
    return sorted(End(raw, wanted) for raw in found)


def _elsewhere(instance: nodes.Instance, wanted: str) -> list[bytes]:
    """Ask the agent for a pod of another node; it knows those that policies may mean."""
    from ebpfnet.model.peers import split
    from ebpfnet.status import ask

    try:
        answer = ask(instance.run, "facts", timeout_s=60)
    except NotRunning:
        return []
    known = (item for group in answer.get("peers", ()) for item in group["pods"].items())
    return [raw for name, packed in known if name.partition(" ")[2] == wanted for raw in split(bytes.fromhex(packed))]


def _reached(places: list[Place], ends: list[End], port: int, protocol: int) -> list[tuple[End, int]]:
    """Return who is asked for in the end: the backends where an end is a service's."""
    found = []
    for end in ends:
        backends: dict[tuple[bytes, int], None] = {}
        for place in places:
            sets = Sets(place.rules.tables)
            for each in sets.frontends():
                key = each.key
                if (key.address, key.port, key.protocol) == (end.address, port, protocol):
                    backends |= dict.fromkeys((one.address, one.port) for one in sets.backends(each.inside))
        if backends:
            found += [(_find(places, str(abi.unpack_address(raw)))[0], number) for raw, number in backends]
        else:
            found.append((end, port))
    return found


def _ways(places: list[Place], source: End, target: End, port: int, protocol: int) -> list[dict[str, Any]]:
    if protocol == abi.Protocol.ICMP and source.version == 6:
        protocol = abi.Protocol.ICMPV6
    return [
        _way(places, direction, source, target, port, protocol) for direction in (Direction.EGRESS, Direction.INGRESS)
    ]


def _way(
    places: list[Place], direction: Direction, source: End, target: End, port: int, protocol: int
) -> dict[str, Any]:
    """Judge one side by the tables of the node that the pod is on."""
    mine, other = (source, target) if direction == Direction.EGRESS else (target, source)
    row: dict[str, Any] = {
        "node": "", "direction": direction.name.lower(), "of": str(mine), "peer": str(other), "port": port or None,
        "verdict": "allow", "rule": None, "rule_id": None, "policies": [], "graceful": None, "class": None,
        "peers": None, "note": None, "confirmed": None, "confirmation": None, "_": None,
    }  # fmt: skip
    place = next((each for each in places if mine.address in each.rules.lookup.pods), None)
    if place is None:
        return {**row, "note": "not a pod of this node: judged where it is, if at all"}
    row["node"] = place.instance.node
    pod = abi.Pod.unpack(place.rules.tables["pods"].get(mine.address) or bytes(abi.Pod.size()))
    if pod.wire.segment:
        return {**row, "note": "another CNI plugin's pod: its policies are that plugin's"}
    if source.address == target.address:
        return {**row, "note": "a pod's packets to its own address never leave it"}
    if place.rules.lookup.marks.get(source.address, 0) & Mark.OWN:
        return {**row, "note": "what its own node asks a pod always passes"}
    found = judge(place.rules.tables, source.address, target.address, protocol, port, direction)
    asked = (place, source.address, target.address, protocol, port, direction, found)
    name = place.rules.name(found.rule)
    return {
        **row,
        "verdict": found.verdict.name.lower(),
        "rule": name or None,
        "rule_id": f"{found.rule:016x}" if found.rule else None,
        "policies": list(policies_by(found.rule, place.rules.name)),
        "graceful": found.graceful,
        "class": found.peers if found.group else None,
        "peers": place.rules.peers(found.peers) if found.group else None,
        "note": _note(found, direction),
        "_": asked,
    }


def _note(found: Judgement, direction: Direction) -> str | None:
    if not found.group:
        return "no policy selects the pod"
    if found.rules_missing:
        return "its group has no rules: fails closed until they are written"
    return None if found.rule else f"no policy restricts {direction.name.lower()} between these"


def _confirm(places: list[Place], rows: list[dict[str, Any]], cache: Path | None) -> None:
    """Send each row's packet through the programs of its node."""
    from ebpfnet.simulate.confirm import Question, stand

    for place in places:
        mine = [row for row in rows if row["_"] is not None and row["_"][0] is place]
        if not mine:
            continue
        try:
            with stand(place.rules.tables, place.instance.pins, cache) as ready:
                for row in mine:
                    _, *question, found = row["_"]
                    _compare(row, found, ready.ask(Question(*question)))
        except EbpfnetError as error:
            for row in mine:
                row["confirmation"] = f"not confirmed: {error}"


def _compare(row: dict[str, Any], found: Judgement, seen: Any) -> None:
    if seen.same is False:
        row["confirmation"] = f"not confirmed: {seen.program} on the node is another version's"
    elif seen.verdict is None:
        row["confirmation"] = f"not confirmed: {seen.program} drops the packet for another reason, {seen.reason.name}"
    else:
        row["confirmed"] = (seen.verdict, seen.rule) == (found.verdict, found.rule)
        verb = {Verdict.DENY: "drops it", Verdict.ALLOW: "passes it", Verdict.AUDIT: "passes and audits it"}[
            seen.verdict
        ]
        by = f" by rule {seen.rule:016x}" if seen.rule else ""
        row["confirmation"] = f"{seen.program} {verb}{by}"


def _lines(row: dict[str, Any]) -> list[str]:
    port = f" port {row['port']}" if row["port"] else ""
    on = f" (on {row['node']})" if row["node"] else ""
    way = f"to {row['peer']}" if row["direction"] == "egress" else f"from {row['peer']}"
    color = {"allow": "green", "deny": "red", "audit": "yellow"}[row["verdict"]]
    lines = [f"{row['direction']} of {row['of']}{on} {way}{port}: {click.style(row['verdict'].upper(), fg=color)}"]
    lines.append(f"  {row['rule'] or row['note']}")
    if row["rule"] and row["peers"]:
        from ebpfnet.cli.policy import say_peers

        lines.append(f"  peer: {row['peer']}, {say_peers(row['peers'])}")
    sure = {True: "confirmed", False: click.style("DISAGREEMENT", fg="red", bold=True), None: ""}[row["confirmed"]]
    if row["confirmation"]:
        lines.append(f"  {sure}{': ' if sure else ''}{row['confirmation']}")
    return lines
