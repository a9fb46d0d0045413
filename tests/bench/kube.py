"""A real agent and the test API server at the largest size Kubernetes supports: start, single changes, churn, restart.

Both run in one network namespace of their own, the agent with a private BPF filesystem. Times of changes are read from
the agent's own histograms; a percentile is the upper bound of its bucket.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.apiserver.process import Process
from tests.apiserver.tls import write_kubeconfig
from tests.bench import resident
from tests.bench.figures import Figure, at_least, at_most
from tests.bench.namespace import Namespace

FOLDER = Path("build/bench/kube")  # relative: a socket's path must be short
NODE = "node-0"
QUIET_S, CALM_S, CALM_RATE = 10, 15, 20
BURST, BURST_RATE = 40_000, 8_000
ROLL_RATE = 2_000
Histogram = dict[float, float]


class Agent:
    """An agent that follows the API server."""

    def __init__(self, node: Namespace, process: subprocess.Popen[str], socket: Path) -> None:
        self.node, self.process, self.socket = node, process, socket

    def status(self) -> dict[str, Any]:
        """Return what the agent says of itself."""
        return resident.ask(self.socket)

    def wait(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 120) -> float:
        """Wait until a condition of the status holds; returns how long that took."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            try:
                if condition(self.status()):
                    return time.perf_counter() - begin
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the agent ended with status {self.process.returncode}") from None
            time.sleep(0.005)
        raise TimeoutError(f"not so after {seconds} s: {self.status()}")

    def cpu_s(self) -> float:
        """Return the processor time that its threads have used, to the nanosecond (ticks of 10 ms would be noise)."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in threads) / 1e9

    def histogram(self, name: str) -> Histogram:
        """Return a histogram's cumulative buckets, families added up."""
        with self.node.entered(), urlopen("http://127.0.0.1:10249/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: Histogram = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{name}_bucket":
                    bound = float(sample.labels["le"])
                    found[bound] = found.get(bound, 0) + sample.value
        return found


def _quantile(before: Histogram, after: Histogram, share: float) -> float:
    """Return the upper bound of the bucket in which a share of what came between two readings ends."""
    counts = {bound: after[bound] - before[bound] for bound in sorted(after)}
    total = counts[float("inf")]
    return next(bound for bound, count in counts.items() if count >= total * share)


def _events(status: dict[str, Any]) -> int:
    return sum(int(each["events"]) for each in status["watch"])


@contextmanager
def _agent(node: Namespace, kubeconfig: Path) -> Iterator[Agent]:
    pins, run = FOLDER / "bpf", FOLDER / "run"
    command = [sys.executable, "-m", "ebpfnet", "agent", "--node-name", NODE, "--kubeconfig", str(kubeconfig)]
    command += ["--pins", str(pins / "node"), "--run", str(run), "--uplink", "uplink0", "--cache", "build/bench"]
    process = node.start(["setpriv", "--pdeathsig", "KILL", *command, "--log-level", "error"])
    try:
        yield Agent(node, process, run / "agent.sock")
    finally:
        process.kill()
        process.wait()


def _in_sync(status: dict[str, Any]) -> bool:
    return bool(status["synced"]) and not status["pending"]


def _start(agent: Agent) -> list[Figure]:
    elapsed = agent.wait(_in_sync)
    now, peak = resident.memory_mb(agent.process.pid)
    return [
        at_most("kube: start to in sync, 10,000 services, 250,000 endpoints", elapsed, "s", 3),
        at_most("kube: memory in sync", now, "MB", 150),
        at_most("kube: memory at its peak", peak, "MB", 250),
    ]


def _share(agent: Agent, seconds: float) -> float:
    begin, worked = time.monotonic(), agent.cpu_s()
    time.sleep(seconds)
    return (agent.cpu_s() - worked) / (time.monotonic() - begin) * 100


def _calm(agent: Agent, post: Callable[..., Any]) -> list[Figure]:
    idle = _share(agent, QUIET_S)
    before = agent.histogram("ebpfnet_watch_to_map_duration_seconds")
    post("flip", rate=CALM_RATE)
    busy = _share(agent, CALM_S)
    post("calm")
    after = agent.histogram("ebpfnet_watch_to_map_duration_seconds")
    p50, p99 = (_quantile(before, after, share) * 1000 for share in (0.5, 0.99))
    return [
        at_most("kube: idle, share of a core", idle, "%", 0.2),
        at_most(f"kube: {CALM_RATE} changes/s, share of a core", busy, "%", 1),
        at_most("kube: event read to map written, p50", p50, "ms", 0.5),
        at_most("kube: event read to map written, p99", p99, "ms", 3),
    ]


def _burst(agent: Agent, post: Callable[..., Any]) -> Figure:
    seen = _events(agent.status())
    begin = time.perf_counter()
    post("flip", rate=BURST_RATE, count=BURST)
    agent.wait(lambda status: _events(status) >= seen + BURST)
    return at_least("kube: endpoint slice events taken", BURST / (time.perf_counter() - begin), "/s", 5000)


def _rolling(agent: Agent, post: Callable[..., Any]) -> Figure:
    name = "kubeproxy_network_programming_duration_seconds"
    before, seen = agent.histogram(name), _events(agent.status())
    post("roll", rate=ROLL_RATE)
    agent.wait(lambda status: _events(status) >= seen + 5000)
    worst = _quantile(before, agent.histogram(name), 1) * 1000
    return at_most("kube: rolling update of 2,500 endpoints, change to map, worst", worst, "ms", 20)


def _restart(node: Namespace, kubeconfig: Path) -> list[Figure]:
    with _agent(node, kubeconfig) as agent:
        elapsed = agent.wait(_in_sync)
        return [
            at_most("kube: restart with nothing changed", elapsed, "s", 4),
            at_most("kube: restart, entries written", float(agent.status()["writes"]), "entries", 0),
        ]


def _peers(node: Namespace, kubeconfig: Path) -> list[Figure]:
    """Start with a policy that selects a pod of the node and has pods as peers: all pods are read, 900 MB of JSON."""
    with _agent(node, kubeconfig) as agent:
        elapsed = agent.wait(lambda status: _in_sync(status) and "peers" in _followed(status))
        now, peak = resident.memory_mb(agent.process.pid)
    return [
        at_most("kube: start to in sync with 150,000 pods that a local policy needs", elapsed, "s", 8),
        at_most("kube: memory with them", now, "MB", 300),
        Figure("kube: … at its peak then", peak, "MB"),
    ]


def _followed(status: dict[str, Any]) -> set[str]:
    return {str(each["resource"]) for each in status["watch"] if each["state"] == "watching"}


def _policy() -> dict[str, Any]:
    """Return a policy for a pod of the node, whose peers are all pods there are."""
    meta = {"name": "local", "namespace": "team-00"}
    spec: dict[str, Any] = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def _measure() -> list[Figure]:
    node = Namespace()
    node.call(["ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "network0"])
    kubeconfig = FOLDER / "kubeconfig"
    with node.entered(), Process("--scale", "full") as server:

        def post(action: str, **values: Any) -> Any:
            with node.entered():
                return server.post(action, **values)

        write_kubeconfig(kubeconfig, server.url)
        with _agent(node, kubeconfig) as agent:
            figures = [*_start(agent), *_calm(agent, post), _burst(agent, post), _rolling(agent, post)]
            now, peak = resident.memory_mb(agent.process.pid)
            figures += [Figure("kube: memory after churn", now, "MB"), Figure("kube: … at its peak", peak, "MB")]
        figures += _restart(node, kubeconfig)
        post("put", **_policy())
        figures += _peers(node, kubeconfig)
    return figures


def run() -> list[Figure]:
    """Measure in a mount namespace of its own: the pins must outlive an agent, and be nobody else's."""
    command = ["unshare", "--mount", sys.executable, "-c", "from tests.bench import kube; kube.measure()"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Figure(**each) for each in json.loads(done.stdout)]


def measure() -> None:
    """Start both, measure, end them, and print the figures as JSON."""
    shutil.rmtree(FOLDER, ignore_errors=True)  # of a run that was killed
    for name in ("bpf", "run"):
        (FOLDER / name).mkdir(parents=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(FOLDER / "bpf")], check=True)
    try:
        print(json.dumps([asdict(figure) for figure in _measure()]))
    finally:
        subprocess.run(["umount", str(FOLDER / "bpf")], check=True)
        shutil.rmtree(FOLDER)
