"""How long the control plane takes and what it weighs, with 10,000 services and 250,000 endpoints.

`scale.py` measures the reconciler over real tables, from decoded objects, each time in a new process; `resident.py`
starts a real agent on the same cluster as a folder of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from tests.bench import objects, resident
from tests.bench.figures import Figure, at_most, percentile

ROUNDS = 5


def _once() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.bench.scale"], stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _latency(rounds: list[dict[str, Any]], key: str, words: str) -> list[Figure]:
    taken, worked = ([value for told in rounds for value in told[f"{key}_{unit}"]] for unit in ("ms", "cpu_ms"))
    return [
        at_most(f"sync: {words}, p50", percentile(taken, 50), "ms", 0.5),
        at_most(f"sync: {words}, p99", percentile(taken, 99), "ms", 3),
        Figure(f"sync: {words}, p99 of processor time", percentile(worked, 99), "ms"),
    ]


def run() -> list[Figure]:
    """Run `scale.py` a few times and the agent once."""
    rounds = [_once() for _ in range(ROUNDS)]

    def median(name: str) -> float:
        middle: float = statistics.median(told[name] for told in rounds)
        return middle

    size = f"{objects.SERVICES:,} services, {objects.ENDPOINTS:,} endpoints"
    return [
        at_most(f"sync: full, {size}", median("sync_s"), "s", 1.5),
        Figure("sync: full, processor time", median("sync_cpu_s"), "s"),
        Figure("sync: full, entries written", median("sync_writes"), "entries"),
        *_latency(rounds, "flip", f"readiness of one of {objects.LARGEST:,} endpoints"),
        *_latency(rounds, "move", f"address of one of {objects.LARGEST:,} endpoints"),
        *_latency(rounds, "small", "readiness of one of 25 endpoints"),
        at_most("sync: restart, entries written", median("restart_writes"), "entries", 0),
        Figure("sync: restart, nothing changed", median("restart_s"), "s"),
        Figure("sync: restart, processor time", median("restart_cpu_s"), "s"),
        Figure("sync: memory of the reconciler's state", median("state_mb"), "MB"),
        *resident.run(),
    ]
