"""``ebpfnet policy``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from ebpfnet.cli import candidates, complaints
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
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
    whole = "in part" if told["problems"] else "yes"
    enforced = "refused" if told["refused"] else whole if told["enforced"] else "no"
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
    that can't be obeyed: the pods that it selects are isolated. `in part`: but for what `policy get` names, a peer of
    a kind that is not known or an annotation. With the agent dead the tables are read alone: ENFORCED
    and PROBLEMS are not known then, and of a policy only what it decides.
    """
    rows = [row for instance, tables in nodes.each(instances) for row in rows_of(instance, Rules(tables))]
    form.show(rows, COLUMNS, output, headers=headers, for_people=complaints.counted)


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
    not come in time, with what is missing. What is left out of one that is enforced otherwise is said, too.
    """
    until = time.monotonic() + timeout
    warned: set[str] = set()
    for instance in instances:
        while (found := _look(instance.run, names(name), generation)).missing:
            if time.monotonic() >= until:
                raise NotEnforced(f"{instance.node or 'this node'}: {name}: {found.missing}")
            time.sleep(_AGAIN_S)
        for problem in found.problems:
            if problem not in warned:
                warned.add(problem)
                click.echo(f"ebpfnet: {name}: {problem}", err=True)


class _Found(NamedTuple):
    """What a policy lacks (empty: nothing), and of one that is enforced what is wrong with it nevertheless."""

    missing: str
    problems: list[str]


def _look(run: Path, wanted: list[str], generation: int | None) -> _Found:
    from ebpfnet.status import ask

    try:
        answer = ask(run, "policies")
    except NotRunning as error:
        return _Found(str(error), [])
    listed = [each for each in answer["policies"] if each["policy"] in wanted]
    found = min(listed, key=lambda each: wanted.index(each["policy"]), default=None)
    if not answer["synced"]:
        return _Found("the agent has not read everything yet", [])
    if found is None:
        return _Found("the agent has not seen it", [])
    if generation is not None and found["generation"] < generation:
        return _Found(f"the agent has seen generation {found['generation'] or '(none)'}, not {generation}", [])
    if found["refused"]:
        return _Found(f"refused: {'; '.join(found['problems'])}", [])
    if not found["enforced"]:
        return _Found("; ".join(found["problems"]) or "its rules are not all written yet", [])
    return _Found("", found["problems"])


def _add() -> None:
    from ebpfnet.cli.policy_diff import diff
    from ebpfnet.cli.policy_explain import explain
    from ebpfnet.cli.policy_get import get

    for command in (get, explain, diff):
        policy.add_command(command)


_add()
