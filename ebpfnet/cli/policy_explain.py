"""``ebpfnet policy explain``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ebpfnet import abi
from ebpfnet.abi import Direction, Mark, Protocol, Verdict
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.policy_ends import Asked, Place, resolve
from ebpfnet.cli.rules import Rules, say_classes
from ebpfnet.exits import Disagreement, EbpfnetError, NotRunning
from ebpfnet.maps import pins
from ebpfnet.maps.dump import protocol_name
from ebpfnet.maps.hits import policies_by, policies_of, rule_of
from ebpfnet.maps.judge import Judgement, judge

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ICMP": Protocol.ICMP}
_COLORS = {"allow": "green", "deny": "red", "audit": "yellow"}


def _port(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is not None and text.isascii() and text.isdigit() and not 1 <= int(text[:6]) <= 65535:
        raise click.BadParameter(f"{text} is not a port (1 to 65535)", ctx, param)
    return text


@click.command()
@click.option("--from", "source", required=True, metavar="[NAMESPACE/]POD|IP", shell_complete=candidates.pods)
@click.option("--to", "destination", required=True, metavar="[NAMESPACE/]POD|svc/[NAMESPACE/]SERVICE|IP",
              shell_complete=candidates.pods_and_services, help="Of a service, each backend.")  # fmt: skip
@click.option(
    "--port", metavar="N|NAME", callback=_port, help="The destination's; of a service also by name. ICMP has none."
)
@click.option("--protocol", type=click.Choice(list(PROTOCOLS), case_sensitive=False), default="TCP", show_default=True)
@click.option("--confirm/--no-confirm", default=True, help="Also send the packet through the programs.")
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where compiled programs are kept.")
@nodes.options
@form.options
def explain(
    instances: list[nodes.Instance],
    source: str,
    destination: str,
    port: str | None,
    protocol: str,
    output: str,
    *,
    confirm: bool,
    cache: Path | None,
    headers: bool,
) -> None:
    """Say which policy and rule decide about a connection, where it leaves its pod and where it comes to one.

    Found in the live tables, and confirmed by a packet that is sent through the same programs over a copy of them:
    nothing of the node is touched. When the two disagree, the exit code is 11. Which entry of the rule's peers means
    the other end is asked of the node's agent.

    A name is a service's when that has the port, or when no pod is called so; `svc/NAME` and `pod/NAMESPACE/NAME` say
    which is meant.
    """
    del headers
    with ExitStack() as stack:
        places = [Place(each, Rules(stack.enter_context(pins.opened(each.pins)))) for each in instances]
        asked = resolve(places, source, destination, port, PROTOCOLS[protocol.upper()])
        rows = [row for each in asked for row in _ways(places, each)]
        if confirm:
            _confirm(places, rows, cache)
    for row in rows:
        row.pop("_")
    if output in {"json", "yaml"}:
        form.document(rows, output)
    else:
        pairs = zip(asked, rows[::2], rows[1::2], strict=True)
        click.echo("\n".join(line for each, *both in pairs for line in _lines(each, both)))
    wrong = [row for row in rows if row["confirmed"] is False]
    if wrong:
        raise Disagreement(
            "the programs do NOT do what the tables say: this is a bug of ebpfnet, or the tables changed"
        )


def _ways(places: list[Place], asked: Asked) -> list[dict[str, Any]]:
    return [_way(places, direction, asked) for direction in (Direction.EGRESS, Direction.INGRESS)]


def _way(places: list[Place], direction: Direction, asked: Asked) -> dict[str, Any]:
    """Judge one side by the tables of the node that the pod is on."""
    source, target, port, protocol = asked[:4]
    mine, other = (source, target) if direction == Direction.EGRESS else (target, source)
    row: dict[str, Any] = {
        "node": "", "direction": direction.name.lower(), "of": str(mine), "peer": str(other), "port": port or None,
        "protocol": protocol_name(protocol), "service": asked.service or None, "called": asked.called or None,
        "verdict": "allow", "rule": None,
        "rule_id": None, "policies": [], "matched": None, "also": [], "nearest": [], "graceful": None, "class": None,
        "peers": None, "note": None, "confirmed": None, "confirmation": None, "_": None,
    }  # fmt: skip
    place = next((each for each in places if each.has(mine.address)), None)
    if place is None:
        return {**row, "note": "not judged here: no pod of this node"}
    row["node"] = place.instance.node
    pod = abi.Pod.unpack(place.rules.tables["pods"].get(mine.address) or bytes(abi.Pod.size()))
    if pod.wire.segment:
        return {**row, "note": "another CNI plugin's pod: its policies are that plugin's"}
    if source.address == target.address:
        return {**row, "note": "a pod's packets to its own address never leave it"}
    if place.rules.lookup.marks.get(source.address, 0) & Mark.OWN:
        return {**row, "note": "what its own node asks a pod always passes"}
    found = judge(place.rules.tables, source.address, target.address, protocol, port, direction)
    name = place.rules.name(found.rule)
    return {
        **row,
        "verdict": found.verdict.name.lower(),
        "rule": name or None,
        "rule_id": f"{found.rule:016x}" if found.rule else None,
        "policies": list(policies_by(found.rule, place.rules.name)),
        **(_cited(place, direction, found, asked) if found.rule else {}),
        "graceful": found.graceful,
        "class": found.peers if found.group else None,
        "peers": place.rules.peers(found.peers) if found.group else None,
        "note": _note(found, direction),
        "_": (place, source.address, target.address, protocol, port, direction, found),
    }


def _cited(place: Place, direction: Direction, found: Judgement, asked: Asked) -> dict[str, Any]:
    """Return what the agent says the rule stands for; what the rule's name says when the agent has no answer."""
    from ebpfnet.status import ask

    about = {"group": found.group, "direction": direction, "peers": found.peers, "rule": found.rule}
    try:
        told = ask(place.instance.run, "citation", **about, protocol=asked.protocol, port=asked.port).get("citation")
    except NotRunning:
        told = None
    if told is not None:
        return dict(told)
    name = place.rules.name(found.rule)
    path = rule_of(name)
    if not path:
        return {"nearest": None}
    return {"matched": {"policy": policies_of(name)[0], "rule": path, "entry": None, "text": None, "ports": None}}


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
        by = f" by rule {seen.rule:016x}" if seen.rule and not row["confirmed"] else ""
        row["confirmation"] = f"{seen.program} {verb}{by}"


def _lines(asked: Asked, rows: list[dict[str, Any]]) -> list[str]:
    """Say what became of one connection, and on each side why."""
    verdicts = {row["verdict"] for row in rows}
    verdict = next(each for each in ("deny", "audit", "allow") if each in verdicts)
    through = f" through service {asked.service} at {asked.called}" if asked.service else ""
    where = f"{protocol_name(asked.protocol)}{f' {asked.port}' if asked.port else ''}"
    lines = [f"{asked.source} -> {asked.target} {where}{through}: {_colored(verdict)}"]
    lines += [f"  {asked.note}"] if asked.note else []
    for row in rows:
        on = f" on {row['node']}" if row["node"] else ""
        if row["rule"] is None:
            lines.append(f"  {row['direction']}{on}: {row['note']}")
        else:
            by = ", " if row["rule"].startswith("isolated") else " by "
            lines.append(f"  {row['direction']}{on}: {_colored(row['verdict'])}{by}{row['rule']}")
            left = ["open connections are left until they end"] if row["graceful"] and row["verdict"] == "deny" else []
            lines += [f"    {line}" for line in (*_why(row), *left, _say_class(row))]
        sure = {True: "confirmed: ", False: click.style("DISAGREEMENT: ", fg="red", bold=True), None: ""}
        lines += [f"    {sure[row['confirmed']]}{row['confirmation']}"] if row["confirmation"] else []
    return lines


def _colored(verdict: str) -> str:
    return click.style(verdict.upper(), fg=_COLORS[verdict])


def _say_class(row: dict[str, Any]) -> str:
    said = say_classes([row["peers"]])
    return said if said.startswith("class") else f"class {row['class']}: {said}"


def _why(row: dict[str, Any]) -> list[str]:
    """Say which entry of the rule's peers means the other end, or why none of any does."""
    matched = row["matched"]
    if matched is None:
        if row["nearest"] is None:
            return ["which rules come near: not known, the agent does not answer"]
        return [f"{_say(each)} means this peer, but on {_ports(each)} only" for each in row["nearest"]] or [
            "no rule of theirs means this peer"
        ]
    if matched["text"] is None:
        return [f"{matched['rule']}: which of its peers is not known, the agent does not answer"]
    on = "" if matched["ports"] == ["any"] else f", on {_ports(matched)}"
    lines = [f"{matched['entry'] or matched['rule']}: {matched['text']}{on}"]
    if row["also"]:
        others = ", ".join(_say(each, matched["policy"]) for each in row["also"])
        lines.append(f"the first of {len(row['also']) + 1} that match: also {others}")
    return lines


def _say(entry: dict[str, Any], known: str = "") -> str:
    path = f"{entry['entry'] or entry['rule']} ({entry['text']})"
    return path if entry["policy"] == known else f"{entry['policy']}, {path}"


def _ports(entry: dict[str, Any]) -> str:
    return ", ".join(entry["ports"])
