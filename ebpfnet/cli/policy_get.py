"""``ebpfnet policy get``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ebpfnet.cli import candidates, complaints
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import NoSuchName, near
from ebpfnet.cli.policy import names, rows_of
from ebpfnet.cli.rules import Rules, say_classes, some

COLUMNS = ("rule", "verdict", "means", "ports", "peers", "pods", "allowed", "denied", "audited")
COUNTS = ("allowed", "denied", "audited")
_STATES = {"yes": "enforced", "in part": "enforced in part", "no": "NOT enforced yet", "refused": "REFUSED"}


@click.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.policies)
@nodes.options
@form.options
def get(name: str, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Show all of one policy: pods, rules, classes of peers, what was decided, problems.

    NAME without a namespace is a ClusterNetworkPolicy, or else a NetworkPolicy of `default`.

    MEANS is whom a rule means, as the policy says it. PORTS and PEERS are what the tables have: which addresses it
    decides about now and on which ports; of a rule that decides about nobody, because no such peer is there or others
    come first, the ports that it names. PODS says of which pods that is so, where not of all. ALLOWED, DENIED and
    AUDITED are a rule's for all pods together.
    """
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    for instance, tables in nodes.each(instances):
        rules = Rules(tables)
        rows = rows_of(instance, rules)
        known |= {f"{row['kind']} {row['policy']}" for row in rows}
        mine = [row for row in rows if f"{row['kind']} {row['policy']}" in names(name)]
        found += [_details(instance, rules, row) for row in mine]
    if not found:
        hint = near(name, (each.partition(" ")[2] for each in known))
        raise NoSuchName(f"no policy {name!r} that selects pods here{hint}")
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    for number, each in enumerate(found):
        click.echo("\n" * (number > 0), nl=False)
        _show(each, output, headers=headers)


def _details(instance: nodes.Instance, rules: Rules, row: dict[str, Any]) -> dict[str, Any]:
    key = f"{row['kind']} {row['policy']}"
    entries = rules.by_policy.get(key, [])
    told = (complaints.of_policies(instance) or {}).get(key) or {}
    groups = sorted({each.group for each in entries})
    said = {each["id"]: each for each in told.get("rules", ())}
    decided = [{**each, "means": said.get(each["id"], {}).get("peers")} for each in rules.details(key)]
    there = {each["id"] for each in decided}
    decided += [_idle(each) for each in said.values() if each["id"] not in there]
    return {
        **row,
        **{name: told.get(name) for name in ("selects", "tier", "priority")},
        "pod_names": told["pods"] if told else rules.pods_of(entries),
        "groups": [
            {
                "group": f"{group:016x}",
                "pods": sorted(set(rules.groups.get(group, {}).values())),
                "isolated": rules.isolation(group),
            }
            for group in groups
        ],
        "classes": [rules.peers(number, most=10) for number in sorted({each.peers for each in entries})],
        "decides": sorted(decided, key=lambda each: _order(each, list(said))),
    }


def _idle(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a rule that decides about nobody: no such peer is there, or others come first."""
    nothing: dict[str, Any] = {"direction": None, "graceful": None, "group": None, "peers": []}
    head = {"rule": told["rule"], "id": told["id"], "verdict": told["action"], "ports": told["ports"]}
    nothing["policies"] = []
    return {**head, **nothing, **dict.fromkeys(COUNTS, 0), "means": told["peers"]}


def _order(row: Mapping[str, Any], said: list[str]) -> tuple[int, str]:
    """Rules as they are written, then what isolates; without an agent by name."""
    place = said.index(row["id"]) if row["id"] in said else len(said)
    return place, "~" if row["rule"].startswith("isolated") else row["rule"]


def _show(each: dict[str, Any], output: str, *, headers: bool) -> None:
    on = f" on {each['node']}" if each["node"] else ""
    tier = f" ({each['tier']}, priority {each['priority']})" if each["tier"] else ""
    state = _STATES.get(each["enforced"], "(the agent does not answer)")
    click.echo(f"{each['kind']} {each['policy']}{tier}{on}: {state}")
    selects = f" ({each['selects']})" if each["selects"] else ""
    directions = " and ".join(each["directions"]) or "no direction"
    click.echo(f"  {directions} of {', '.join(each['pod_names']) or 'no pod'}{selects}")
    click.echo(f"  mode {each['mode']}, established connections {each['established'] or '-'}")
    for problem in each["problems"]:
        click.echo(click.style(f"  problem: {problem}", fg="red"))
    if each["decides"]:
        form.show(_rows(each), COLUMNS, output, headers=headers)


def _rows(each: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table: what is the same for several groups once, and a rule's hits at its first."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in each["decides"]:
        peers = say_classes(row["peers"])
        key = (row["id"], row["verdict"], *row["ports"], peers)
        merged.setdefault(key, {**row, "peers": peers or _nobody(row, each)})
        groups.setdefault(key, []).append(row["group"])
    pods = {group["group"]: group["pods"] for group in each["groups"]}
    seen: set[str] = set()
    for key, row in merged.items():
        row["rule"] = _short(row, each)
        row["means"] = "; ".join(one["text"] for one in row["means"] or ()) or None
        if len(groups[key]) < len(pods):
            row["pods"] = some([pod for group in groups[key] for pod in pods.get(group, ())]) or None
        if row["id"] in seen:
            row.update(dict.fromkeys((*COUNTS, "means")))
        seen.add(row["id"])
    return list(merged.values())


def _nobody(row: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    if row["verdict"] == "pass":
        return "(leaves it to the next tier)"
    return "(nobody: it is audited)" if each["mode"] == "audit" else "(nobody, or others come first)"


def _short(row: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    """Return a rule's name without that of the policy that is shown."""
    mine = f"{each['kind']} {each['policy']}"
    head, _, rest = row["rule"].partition(" by ")
    if not rest:
        return str(row["rule"]).partition(", ")[2]
    others = [policy.partition(" ")[2] for policy in row["policies"] if policy != mine]
    return f"{head}, with {some(others)}" if others else head
