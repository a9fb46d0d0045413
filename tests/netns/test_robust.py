"""What else can go wrong around an agent: no connection fails, and in the end the tables hold what the cluster says."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ebpfnet.lab import agents, client, namespace, processes
from tests.netns import objects
from tests.netns.kube import NODES, Kube
from tests.netns.test_restart import Load, Wait, datagrams, new_connections, one_connection, progress, running

SECONDS = 30


@contextmanager
def serving(kube: Kube, wait: Wait) -> Iterator[list[Load]]:
    """Have traffic of every kind, both families, near and far; none of it may fail."""
    caller, of = kube.lab.pod("client"), kube.lab.service
    loads: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        (new_connections, (caller, of("far").v6, 80)),
        (one_connection, (caller, of("near").v6, 80)),
        (one_connection, (caller, of("far").v4, 80)),
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


# A disk that is full.


@contextmanager
def full(folder: Path) -> Iterator[list[Path]]:
    """Put a file system without room over a folder; yields its files, the last one without content."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "full", folder], check=True)
    try:
        files: list[Path] = []
        with contextlib.suppress(OSError):
            while True:
                (path := folder / f"{len(files)}").touch()
                files.append(path)
        with contextlib.suppress(OSError), files[0].open("wb", buffering=0) as file:
            while file.write(bytes(1024)):
                pass
        yield files
    finally:
        namespace.unmount(folder)


def test_run_and_cache_folders_are_full(kube: Kube, wait: Wait, tmp_path: Path):
    """Without room for its lock an agent does not start; without room for all else it serves, and tells so later."""
    node, cache, log = "node-a", tmp_path / "cache", tmp_path / "log"
    run = kube.lab.places.run(node)
    with serving(kube, wait) as results, full(cache) as cached, full(run) as files:
        kube.lab.kill_agent(node, signal.SIGKILL)
        line = command(kube, node, "--cache", str(cache))
        refused = kube.lab.node(node).exec(*line)
        text = f"ebpfnet: the run directory {run} can't be used: No space left on device\n"
        assert (refused.returncode, refused.stderr) == (1, text)
        progress(results, wait)
        files.pop().unlink()
        start(kube, node, log, line)
        wait(lambda: "in sync after" in log.read_text() and "agent.sock: No space left" in log.read_text(), SECONDS)
        assert sorted(cache.iterdir()) == sorted(cached)
        progress(results, wait)
        for path in files:
            path.unlink()
        kube.lab.wait_synced()
        assert kube.equal()
    kube.lab.restart_agent(node)


@pytest.mark.parametrize("options", ["remount,bind,ro", "remount,ro"], ids=["mount", "filesystem"])
def test_the_pin_directory_takes_nothing(kube: Kube, wait: Wait, options: str):
    """An agent that starts ends with a word about it, and what is pinned serves on, also while there is no agent."""
    place, node = kube.lab.places.bpf, "node-a"
    with serving(kube, wait) as results:
        subprocess.run(["mount", "-o", options, place], check=True)
        try:
            for piece in objects.service("late", 150, [("http", "TCP", 80, 8080)], [objects.NEAR_WEB]):
                kube.put(piece)
            wait(lambda: answers(kube, "10.96.0.150"), SECONDS)  # who runs needs no new pin
            kube.lab.kill_agent(node, signal.SIGKILL)
            refused = kube.lab.node(node).exec(*command(kube, node))
            assert refused.returncode == 10
            assert refused.stderr.count("\n") == 1
            assert "Read-only file system" in refused.stderr
            progress(results, wait)
        finally:
            subprocess.run(["mount", "-o", options.replace("ro", "rw"), place], check=True)
        kube.lab.start_agent(node)
        kube.lab.wait_synced()
        assert kube.equal()


def answers(kube: Kube, address: str) -> bool:
    """Say whether a web service answers."""
    try:
        client.tcp(kube.lab.pod("client"), address, 80)
    except OSError:
        return False
    return True


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
