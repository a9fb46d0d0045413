"""``ebpfnet status``."""

from __future__ import annotations

import time
from typing import Any

import click

from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.exits import EbpfnetError, NotRunning


@click.command()
@nodes.options
@form.options
def status(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Tell whether the node is in sync, how full its tables are, and what was refused and why.

    The exit code is 8 when an agent does not answer; what its tables hold is printed all the same.
    """
    from ebpfnet.status import ask

    del headers
    answers: list[dict[str, Any]] = []
    for instance in instances:
        try:
            agent: dict[str, Any] = {"running": True, **ask(instance.run)}
        except NotRunning as error:
            agent = {"running": False, "node": instance.node, "reason": str(error)}
        try:
            agent["tables"] = _tables(instance)
        except EbpfnetError as error:
            if not agent["running"]:
                raise
            agent["tables"] = {"error": str(error)}
        answers.append(agent)
    if output in {"json", "yaml"}:
        form.document(answers[0] if len(answers) == 1 else answers, output)
    else:
        click.echo("\n\n".join("\n".join(_lines(answer)) for answer in answers))
    if dead := [answer["node"] or "this node" for answer in answers if not answer["running"]]:
        raise NotRunning(f"the agent of {', '.join(dead)} is not running")


def _tables(instance: nodes.Instance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, tables in nodes.each([instance]):
        for name in ("services", "slots", "pods", "flows", "names", "rules", "peers"):
            table = tables[name]
            entries = sum(len(keys) // table.spec.key_size for keys, _ in table.chunks())
            found[name] = {"entries": entries, "capacity": table.spec.max_entries}
    return found


def _lines(answer: dict[str, Any]) -> list[str]:
    if not answer["running"]:
        lines = [
            f"node {answer['node'] or '(this one)'}: the agent is NOT running; the datapath goes on with what it has",
            f"  {answer['reason']}",
        ]
    else:
        state = "in sync" if answer["synced"] and not answer["pending"] else "NOT in sync"
        state += "".join(f", {each}" for each in _refusals(answer["problems"]))
        since = form.age(time.time() - answer["started"])
        lines = [f"node {answer['node']}: {state}, agent {answer['version']} pid {answer['pid']} up {since}"]
        if answer["pending"]:
            lines.append(f"  {answer['pending']} units are not written yet")
        served = sum(1 for each in answer["interfaces"] if each["programs"])
        lines.append(f"  interfaces: {served} of pods, uplink {', '.join(answer['uplink'])}")
        if shortcut := answer.get("socket_shortcut"):
            lines.append(f"  socket shortcut: {shortcut}")
        policies = answer.get("policies")
        if policies and policies["known"]:
            refused = f", {policies['refused']} refused" if policies["refused"] else ""
            here = f"{policies['here']} select pods here, {policies['enforced']} of them enforced{refused}"
            lines.append(f"  policies: {policies['known']}, {here}")
        for watch in answer["watch"]:
            if watch["state"] not in {"watching", "absent", "not needed"}:
                lines.append(f"  watch: {watch['resource']} is {watch['state']}")
    tables = answer["tables"]
    if "error" not in tables:
        use = [f"{name} {table['entries']}/{table['capacity']}" for name, table in tables.items()]
        lines.append(f"  tables: {', '.join(use)}")
    for problem in answer.get("problems", ()):
        parts = (_KINDS[problem.get("partial")], problem["ref"], problem["field"], problem["reason"])
        lines.append(click.style("  " + ": ".join(part for part in parts if part), fg="red"))
    return lines


_KINDS = {None: "refused", False: "refused, its last good version stays", True: "left out"}
"""By ``partial`` of a problem; None: the agent does not say."""


def _refusals(problems: list[dict[str, Any]]) -> list[str]:
    """Return how many objects were refused in whole, and of how many a part was left out."""
    whole = {problem["ref"] for problem in problems if not problem.get("partial")}
    partly = {problem["ref"] for problem in problems} - whole
    found = ((whole, "refused"), (partly, "served in part"))
    return [f"{len(refs)} object{'' if len(refs) == 1 else 's'} {what}" for refs, what in found if refs]
