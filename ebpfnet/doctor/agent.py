"""The agent, its tables and its programs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ebpfnet.config import SIZED_BY
from ebpfnet.doctor.finding import Finding, Level

FULL, NEARLY_FULL = 0.95, 0.8
QUIET = {"watching", "absent", "not needed"}
START = "kubectl -n kube-system rollout status daemonset ebpfnet"


def state(status: Mapping[str, Any] | None, why: str) -> Iterator[Finding]:
    """Look at an agent's answer; None: there was none, and ``why``."""
    if status is None:
        text = f"the agent does not answer ({why}): what is in the kernel goes on, and follows nobody"
        yield Finding("agent", Level.ERROR, text, START)
        return
    node = status["node"]
    if not status["synced"]:
        yield Finding("agent", Level.ERROR, f"the agent of {node} has not written the cluster's state yet")
    elif status["pending"]:
        yield Finding("agent", Level.WARNING, f"{status['pending']} units are not written yet", "ebpfnet status")
    else:
        yield Finding("agent", Level.OK, f"the agent of {node} is in sync")
    for watch in status["watch"]:
        if watch["state"] not in QUIET:
            yield Finding("watch", Level.WARNING, f"the watch of {watch['resource']} is {watch['state']}")
    for problem in status["problems"]:
        text = f"{problem['ref']}: {problem['field']}: {problem['reason']}"
        yield Finding("objects", Level.WARNING, text)
    bare = [each["name"] for each in status["interfaces"] if not each["programs"]]
    for name in bare:
        yield Finding("programs", Level.ERROR, f"{name} has no programs: the network of its pod is not ours")


def attached(on: Mapping[str, Collection[str]], uplinks: Collection[str], *, running: bool) -> Iterator[Finding]:
    """Look at which interfaces have which programs."""
    for name in uplinks:
        if "from_network" not in on.get(name, ()) and running:
            text = f"the uplink {name} has no program: answers from other nodes are not translated back"
            yield Finding("programs", Level.ERROR, text)
    if on:
        yield Finding("programs", Level.OK, f"programs are attached to {len(on)} interfaces")
    elif not running:
        yield Finding("programs", Level.WARNING, "no interface has a program of ours: services are not served", START)


def tables(used: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """Look at how full tables are; ``used``: entries and capacity by name."""
    good = True
    for name, (entries, capacity) in used.items():
        share = entries / capacity if capacity else 0.0
        if share < NEARLY_FULL:
            continue
        good = False
        text = f"the table {name} has {entries} of {capacity} entries"
        flag = SIZED_BY.get(name)
        command = f"ebpfnet agent {flag}={2 * capacity} …" if flag else ""
        yield Finding("tables", Level.ERROR if share >= FULL else Level.WARNING, text, command)
    if good and used:
        yield Finding("tables", Level.OK, "no table is nearly full")
