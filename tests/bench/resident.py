"""A real agent on a large cluster: how soon it is in sync, and how much memory it holds.

The agent lives in a network namespace and a mount namespace of its own, with its own BPF filesystem, and dies with this
process; nothing outside its own folder is touched.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import objects
from tests.bench.figures import Figure
from tests.bench.namespace import Namespace

FOLDER = Path("build/bench/agent")  # relative: a socket's path must be short
DEADLINE_S = 120
MOUNT_AND_RUN = 'mount -t bpf bpf "$0" && exec setpriv --pdeathsig KILL "$@"'


def ask(path: Path) -> dict[str, Any]:
    """Return an agent's status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b'{"get": "status"}\n')
        answer: dict[str, Any] = json.loads(connection.makefile().readline())
    return answer


def _synced(agent: subprocess.Popen[str], path: Path) -> bool:
    """Is the agent in sync? Raises ``RuntimeError`` when it ended."""
    if agent.poll() is not None:
        raise RuntimeError(f"the agent ended with status {agent.returncode}")
    try:
        status = ask(path)
    except OSError:
        return False
    return bool(status["synced"]) and not status["pending"]


def memory_mb(pid: int) -> tuple[float, float]:
    """Return resident memory now and at its peak."""
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
    return int(found["VmRSS"]) * 1024 / 1e6, int(found["VmHWM"]) * 1024 / 1e6


def _measure(folder: Path) -> list[Figure]:
    manifests, pins, run = (folder / name for name in ("manifests", "bpf", "run"))
    for path in (manifests, pins, run):
        path.mkdir()
    size = objects.write(objects.facts(), manifests)
    node = Namespace()
    node.call(["ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "network0"])
    command = [sys.executable, "-m", "ebpfnet", "agent", "--node-name", objects.HERE, "--manifests", str(manifests)]
    command += [
        "--pins",
        str(pins / "node"),
        "--run",
        str(run),
        "--uplink",
        "uplink0",
        "--cache",
        "build/bench",
        "--log-level",
        "warning",
    ]
    begin = time.monotonic()
    agent = node.start(["unshare", "--mount", "sh", "-c", MOUNT_AND_RUN, str(pins), *command])
    try:
        while not _synced(agent, run / "agent.sock"):
            if time.monotonic() - begin > DEADLINE_S:
                raise RuntimeError(f"the agent was not in sync after {DEADLINE_S} s")
            time.sleep(0.05)
        elapsed = time.monotonic() - begin
        now, peak = memory_mb(agent.pid)
    finally:
        agent.kill()
        agent.wait()
        node.close()
    return [
        Figure(f"agent: start to in sync, from {size / 1e6:.0f} MB of JSON", elapsed, "s"),
        Figure("agent: memory in sync", now, "MB"),
        Figure("agent: memory at its peak", peak, "MB"),
    ]


def run() -> list[Figure]:
    """Start an agent, wait, measure, end it."""
    shutil.rmtree(FOLDER, ignore_errors=True)  # of a run that was killed
    FOLDER.mkdir(parents=True)
    try:
        return _measure(FOLDER)
    finally:
        shutil.rmtree(FOLDER)
