"""What else can go wrong around an agent: no connection fails, and in the end the tables hold what the cluster says."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ebpfnet.lab import agents, processes
from tests.netns.kube import NODES, Kube
from tests.netns.test_restart import Load, Wait, datagrams, new_connections, one_connection, progress, running

SECONDS = 30


@contextmanager
def serving(kube: Kube, wait: Wait) -> Iterator[list[Load]]:
    """Have traffic of every kind, both families, near and far; none of it may fail."""
    caller, of = kube.lab.pod("client"), kube.lab.service
    loads: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (new_connections, (caller, of("near").v4, 80)),
        (new_connections, (caller, of("far").v6, 80)),
        (one_connection, (caller, of("near").v6, 80)),
        (one_connection, (caller, of("far").v4, 80)),
        (datagrams, (caller, of("near-dns").v6, 53)),
        (datagrams, (caller, of("far-dns").v4, 53)),
    ]
    with running(loads) as results:
        progress(results, wait)
        yield results
        progress(results, wait)
    assert [result.failures for result in results] == [[] for _ in loads]


def command(kube: Kube, node: str, *flags: str) -> list[str]:
    """Return the command line of a node's agent, with more flags."""
    plan = kube.lab.plan.node(node)
    assert plan
    return [*agents.command(kube.lab.places, plan, kube.lab.options), *flags]


def start(kube: Kube, node: str, log: Path, line: Sequence[str]) -> None:
    """Start a node's agent as the lab would, by another command line."""
    plan = kube.lab.plan.node(node)
    assert plan
    with log.open("ab") as stream:
        processes.start(plan.netns, line, agents.record(kube.lab.places, node), stream)


# A clock that is another one.

IN_A_TIME_NAMESPACE = """
import ctypes, os, sys
libc, new = ctypes.CDLL(None, use_errno=True), 0x80
assert libc.unshare(new) == 0, os.strerror(ctypes.get_errno())
with open("/proc/self/timens_offsets", "w") as offsets:
    offsets.write(f"monotonic {sys.argv[1]} 0")
there = os.open("/proc/self/ns/time_for_children", os.O_RDONLY)
assert libc.setns(there, new) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[2], sys.argv[2:])
"""


def swept(kube: Kube, node: str) -> float:
    """Return how many sweeps a node's agent made; -1 without an answer."""
    name = "ebpfnet_conntrack_sweeps_total"
    found = [line.split()[-1] for line in kube.metrics(node).splitlines() if line.startswith(name)]
    return float(found[0]) if found else -1.0


def test_an_agent_in_a_time_namespace(kube: Kube, wait: Wait, tmp_path: Path):
    """Its monotonic clock is a month ahead of the kernel's: no live connection is swept for that."""
    with serving(kube, wait) as results:
        for node in NODES:
            kube.lab.kill_agent(node, signal.SIGKILL)
            line = [sys.executable, "-c", IN_A_TIME_NAMESPACE, str(30 * 86400), *command(kube, node)]
            start(kube, node, tmp_path / "log", line)
        kube.lab.wait_synced()
        wait(lambda: all(swept(kube, node) >= 3 for node in NODES), SECONDS)
        progress(results, wait)
        assert kube.equal()
