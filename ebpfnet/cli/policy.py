"""``ebpfnet policy``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ebpfnet.cli import candidates, complaints
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import NoSuchName
from ebpfnet.cli.rules import Rules
from ebpfnet.exits import NotRunning

NAMESPACED, OF_CLUSTER = "NetworkPolicy", "ClusterNetworkPolicy"
COLUMNS = (
    "node",
    "policy",
    "kind",
    "directions",
    "pods",
    "rules",
    "mode",
    "established",
    "enforced",
    "hits",
    "problems",
)
RULE_COLUMNS = ("rule", "verdict", "ports", "peers", "allowed", "denied", "audited")
_SOME = 3
_AGAIN_S = 0.05


class NotEnforced(NotRunning):
    """A policy is not enforced yet, or can't be."""


@click.group()
def policy() -> None:
    """Policies: who is isolated, what is allowed, what they decided, and why."""


def names(text: str) -> list[str]:
    """Return the policies that a word may mean: NAMESPACE/NAME, or NAME of the cluster's and of ``default``."""
    if "/" in text:
        return [f"{NAMESPACED} {text}"]
    return [f"{OF_CLUSTER} {text}", f"{NAMESPACED} default/{text}"]


def rows_of(instance: nodes.Instance, rules: Rules) -> list[dict[str, Any]]:
    """Return a row for each policy that selects pods of a node, or that is refused there."""
    told = complaints.of_policies(instance)
    found = {policy: {**rules.row(policy), "enforced": None, "problems": []} for policy in rules.by_policy}
    for policy, each in (told or {}).items():
        if each["pods"] or each["problems"]:
            found[policy] = _join(found.get(policy) or rules.row(policy), each)
    for policy in found.keys() - (told.keys() if told is not None else found.keys()):
        found[policy]["enforced"] = "no"  # it is gone, and on its way out of the tables
    return [
        {"node": instance.node, **row, "hits": sum(row[name] for name in ("allowed", "denied", "audited"))}
        for _, row in sorted(found.items())
    ]


def _join(row: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    enforced = "refused" if told["refused"] or told["problems"] else "yes" if told["enforced"] else "no"
    return {
        **row,
        "pods": len(told["pods"]),
        "directions": told["directions"],
        "rules": len(told["rules"]),
        "mode": told["mode"],
        "established": told["established"],
        "enforced": enforced,
        "problems": told["problems"],
    }


@policy.command(name="list")
@nodes.options
@form.options
def list_policies(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the policies that select pods of the node.

    HITS are connections that they let pass or audited, and packets that they dropped. ENFORCED is `refused` for one
    that can't be obeyed: the pods that it selects are isolated. With the agent dead the tables are read alone: ENFORCED
    and PROBLEMS are not known then, and of a policy only what it decides.
    """
    rows = []
    for instance, tables in nodes.each(instances):
        rows += rows_of(instance, Rules(tables))
    if output not in {"json", "yaml"}:
        rows = [{**row, "problems": len(row["problems"]) or None} for row in rows]
    form.show(rows, COLUMNS, output, headers=headers)


@policy.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.policies)
@nodes.options
@form.options
def get(name: str, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Show all of one policy: pods, rules, classes of peers, what was decided, problems.

    NAME without a namespace is a ClusterNetworkPolicy, or else a NetworkPolicy of `default`.
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
        _refuse(name, known)
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    for number, each in enumerate(found):
        click.echo("\n" * (number > 0), nl=False)
        _show(each, output, headers=headers)


def _refuse(name: str, known: Iterable[str]) -> None:
    import difflib

    plain = sorted(each.partition(" ")[2] for each in known)
    alike = difflib.get_close_matches(name.rpartition("/")[2], {each.rpartition("/")[2] for each in plain}, n=3)
    near = [each for each in plain if each.rpartition("/")[2] in alike][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NoSuchName(f"no policy {name!r} that selects pods here{hint}")


def _details(instance: nodes.Instance, rules: Rules, row: dict[str, Any]) -> dict[str, Any]:
    key = f"{row['kind']} {row['policy']}"
    entries = rules.by_policy.get(key, [])
    told = (complaints.of_policies(instance) or {}).get(key)
    groups = sorted({each.group for each in entries})
    decided = list(rules.details(key))
    there = {each["id"] for each in decided}
    for each in told["rules"] if told else ():
        if each["id"] not in there:  # nobody is a peer of its, or others decide for all of them
            nothing: dict[str, Any] = {"direction": None, "ports": [], "graceful": None, "group": None, "peers": []}
            counts = {"allowed": 0, "denied": 0, "audited": 0}
            decided.append({"rule": each["rule"], "id": each["id"], "verdict": each["action"], **nothing, **counts})
    numbers = {each.peers for each in entries}
    return {
        **row,
        "pod_names": told["pods"] if told else rules.pods_of(entries),
        "groups": [
            {
                "group": f"{group:016x}",
                "pods": sorted(set(rules.groups.get(group, {}).values())),
                "isolated": rules.isolation(group),
            }
            for group in groups
        ],
        "classes": [rules.peers(number, most=10) for number in sorted(numbers)],
        "decides": decided,
    }


def _show(each: dict[str, Any], output: str, *, headers: bool) -> None:
    on = f" on {each['node']}" if each["node"] else ""
    state = {"yes": "enforced", "no": "NOT enforced yet", "refused": "REFUSED", None: "(the agent does not answer)"}
    click.echo(f"{each['kind']} {each['policy']}{on}: {state[each['enforced']]}")
    click.echo(f"  mode {each['mode']}, established connections {each['established'] or '-'}")
    click.echo(f"  pods: {', '.join(each['pod_names']) or '(none)'}")
    for problem in each["problems"]:
        click.echo(click.style(f"  problem: {problem}", fg="red"))
    rows = [{**row, "peers": "; ".join(map(say_peers, row["peers"])) or "(nobody)"} for row in each["decides"]]
    if rows:
        form.show(rows, RULE_COLUMNS, output, headers=headers)


def say_peers(found: dict[str, Any]) -> str:
    """Return a class in a few words."""
    if found["addresses"] is None:
        return "everybody else"
    more = found["addresses"] - _SOME
    listed = ", ".join(found["some"][:_SOME]) + (f" and {more} more" if more > 0 else "")
    return f"class {found['class']}: {listed or 'nobody now'}"


@policy.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.policies)
@click.option("--timeout", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS")
@click.option("--generation", type=int, metavar="N",
              help="Which metadata.generation.  [default: the last that the agent saw]")  # fmt: skip
@nodes.options
def wait(name: str, timeout: float, generation: int | None, instances: list[nodes.Instance]) -> None:
    """Wait until the node enforces a policy as the API has it; with --lab until every node does.

    After `kubectl apply`, say which version is meant, for the agent may not have seen it yet:
    --generation $(kubectl get networkpolicy NAME -o jsonpath={.metadata.generation}). The exit code is 8 when that does
    not come in time, with what is missing.
    """
    until = time.monotonic() + timeout
    for instance in instances:
        while missing := _missing(instance.run, names(name), generation):
            if time.monotonic() >= until:
                raise NotEnforced(f"{instance.node or 'this node'}: {name}: {missing}")
            time.sleep(_AGAIN_S)


def _missing(run: Path, wanted: list[str], generation: int | None) -> str:
    """Return what a policy lacks; empty: nothing."""
    from ebpfnet.status import ask

    try:
        answer = ask(run, "policies")
    except NotRunning as error:
        return str(error)
    listed = [each for each in answer["policies"] if each["policy"] in wanted]
    found = min(listed, key=lambda each: wanted.index(each["policy"]), default=None)
    if not answer["synced"]:
        return "the agent has not read everything yet"
    if found is None:
        return "the agent has not seen it"
    if generation is not None and found["generation"] < generation:
        return f"the agent has seen generation {found['generation'] or '(none)'}, not {generation}"
    if found["problems"]:
        return f"refused: {'; '.join(found['problems'])}"
    return "" if found["enforced"] else "its rules are not all written yet"


def _add() -> None:
    from ebpfnet.cli.policy_diff import diff
    from ebpfnet.cli.policy_explain import explain

    policy.add_command(explain)
    policy.add_command(diff)


_add()
