"""What else can go wrong around an agent: no connection fails, and in the end the tables hold what the cluster says."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ebpfnet.datapath import interfaces
from ebpfnet.lab import agents, namespace, processes
from tests.apiserver.faults import Fault
from tests.netns import objects
from tests.netns.conftest import Wait
from tests.netns.kube import NODES, Kube
from tests.netns.test_restart import Load, datagrams, new_connections, one_connection, progress, running


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
    with log.open("ab") as stream:
        processes.start(kube.lab.node(node).netns, line, agents.record(kube.lab.places, node), stream)


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
        files.pop().unlink()
        start(kube, node, log, line)
        wait(lambda: "in sync after" in log.read_text() and "agent.sock: No space left" in log.read_text())
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
        before = writes(kube, node)
        subprocess.run(["mount", "-o", options, place], check=True)
        try:
            for piece in objects.service("late", 150, [("http", "TCP", 80, 8080)], [objects.NEAR_WEB]):
                kube.put(piece)
            wait(lambda: writes(kube, node) > before)  # who runs needs no new pin
            kube.lab.kill_agent(node, signal.SIGKILL)
            refused = kube.lab.node(node).exec(*command(kube, node))
            assert (refused.returncode, refused.stderr.count("\n")) == (10, 1)
            assert "Read-only file system" in refused.stderr
            progress(results, wait)
        finally:
            subprocess.run(["mount", "-o", options.replace("ro", "rw"), place], check=True)
        kube.lab.start_agent(node)
        kube.lab.wait_synced()
        assert kube.equal()


def writes(kube: Kube, node: str) -> int:
    return int((kube.lab.agent_status(node) or {}).get("writes", 0))


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
    found = re.search(r"^ebpfnet_conntrack_sweeps_total (\S+)$", kube.metrics(node), re.MULTILINE)
    return float(found[1]) if found else -1.0


def test_an_agent_in_a_time_namespace(kube: Kube, wait: Wait, tmp_path: Path):
    """Its monotonic clock is a month ahead of the kernel's: no live connection is swept for that."""
    with serving(kube, wait) as results:
        for node in NODES:
            kube.lab.kill_agent(node, signal.SIGKILL)
            line = [sys.executable, "-c", IN_A_TIME_NAMESPACE, str(30 * 86400), *command(kube, node)]
            start(kube, node, tmp_path / "log", line)
        kube.lab.wait_synced()
        wait(lambda: all(swept(kube, node) >= 2 for node in NODES))
        progress(results, wait)
        assert kube.equal()


@contextmanager
def storm(kube: Kube, count: int = 2000) -> Iterator[threading.Thread]:
    """Change slices, services and pods that carry no load, in a thread: 200 changes a second."""
    dice, stop = random.Random(20261122), threading.Event()

    def blow() -> None:
        done, began = 0, time.monotonic()
        while done < count and not stop.wait(max(0.0, began + done / 200 - time.monotonic())):  # the pace
            for piece in gust(dice):
                if dice.random() < 0.2:
                    kube.store.delete(piece["kind"], "default", piece["metadata"]["name"])
                else:
                    kube.put(piece)
                done += 1

    thread = threading.Thread(target=blow)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def gust(dice: random.Random) -> list[dict[str, Any]]:
    """Return a service with its slices, and a pod, at random: four changes."""
    index, ports = dice.randrange(20), [("http", "TCP", 80 + dice.randrange(2), 8080 + dice.randrange(3))]
    names = dice.sample(["web-a", "web-b", "dns-a", "dns-b"], dice.randrange(4))
    pieces = objects.service(f"busy-{index}", 100 + index, ports, names)
    return [*pieces, objects.pod(f"busy-{index}", 1 + index % 2, 100 + index)]


def test_ten_times_the_churn(kube: Kube, wait: Wait):
    with serving(kube, wait) as results, storm(kube) as thread:
        wait(lambda: not thread.is_alive())
        wait(kube.equal)
        progress(results, wait)


KINDS = ("refuse", "stall", "garbage", "truncate", "duplicate", "reorder", "status")
FAULTS = [*(Fault(Fault.Kind(kind)) for kind in KINDS), Fault(Fault.Kind.STATUS, code=410, reason="Expired")]
FAULTS += [Fault(Fault.Kind(kind), events=2) for kind in ("cut", "stall", "garbage", "truncate")]


def test_an_api_server_that_is_at_its_worst(kube: Kube, wait: Wait):
    """Silent, cut short and wrong in every way while objects change; when it is well again, all is told anew."""
    dice = random.Random(20261123)
    with serving(kube, wait) as results:
        with storm(kube, count=600) as thread:
            while thread.is_alive():
                for server in kube.servers.values():
                    server.faults.add(dice.choice(FAULTS))
                    server.drop_watches(dice.choice([None, "pods", "services", "endpointslices"]))
                thread.join(0.2)
        for server in kube.servers.values():
            server.faults.clear()
            server.drop_connections()  # a stalled one would be given up after a minute and a half
        wait(kube.equal)
        progress(results, wait)
    status = [kube.lab.agent_status(node) or {} for node in NODES]
    assert all(any(each["failures"] for each in told["watch"]) for told in status)


def test_interfaces_that_come_and_go(kube: Kube, wait: Wait):
    """Hundreds of a second on both nodes, every third with the mark of a pod, while objects change."""
    with serving(kube, wait) as results, storm(kube, count=600) as thread:
        rounds = 0
        while thread.is_alive() or rounds < 10:
            for node in NODES:
                line = kube.lab.node(node).command(["ip", "-batch", "-"])
                subprocess.run(line, input="\n".join(come_and_go()), text=True, check=True)
            rounds += 1
        wait(lambda: not any(busy(kube, node) for node in NODES))
        wait(kube.equal)
        progress(results, wait)


def come_and_go() -> Iterator[str]:
    """Yield what ``ip -batch`` reads."""
    yield from (f"link add busy{each} type veth peer name peer{each}" for each in range(10))
    for each in range(0, 10, 3):
        mark = interfaces.alias(f"default/busy-{each}", f"02:00:00:00:00:{each:02x}")
        yield f'link set busy{each} alias "{mark}"'
    yield from (f"link del busy{each}" for each in range(10))


def busy(kube: Kube, node: str) -> bool:
    status = kube.lab.agent_status(node)
    return status is None or any(each["name"].startswith("busy") for each in status["interfaces"])
