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
    """Tell whether the node is in sync, how full its tables are, and what was refused and why."""
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
        return
    click.echo("\n\n".join("\n".join(_lines(answer)) for answer in answers))


def _tables(instance: nodes.Instance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, tables in nodes.each([instance]):
        for name in ("services", "slots", "pods", "flows", "names"):
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
        since = form.age(time.time() - answer["started"])
        lines = [f"node {answer['node']}: {state}, agent {answer['version']} pid {answer['pid']} up {since}"]
        if answer["pending"]:
            lines.append(f"  {answer['pending']} units are not written yet")
        served = sum(1 for each in answer["interfaces"] if each["programs"])
        lines.append(f"  interfaces: {served} of pods, uplink {', '.join(answer['uplink'])}")
        for watch in answer["watch"]:
            if watch["state"] not in {"watching", "absent"}:
                lines.append(f"  watch: {watch['resource']} is {watch['state']}")
    tables = answer["tables"]
    if "error" not in tables:
        use = [f"{name} {table['entries']}/{table['capacity']}" for name, table in tables.items()]
        lines.append(f"  tables: {', '.join(use)}")
    for problem in answer.get("problems", ()):
        lines.append(click.style(f"  refused: {problem['ref']}: {problem['field']}: {problem['reason']}", fg="red"))
    return lines
