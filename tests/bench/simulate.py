"""How fast `ebpfnet simulate` answers, as a process of its own with lines going in and out, on the demo's cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from ebpfnet.lab.folder import DEMO
from tests.bench.figures import Figure, at_least, at_most, percentile

FLOWS = 30_000
APPLIES = 500
ASKED = [
    {"from": "default/client", "to": "default/web", "port": 80},
    {"from": "default/client", "to": "default/web-b", "port": 8080},
]


class Asked:
    """A running `simulate --interactive`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._in, self._out = process.stdin, process.stdout

    def ask(self, question: object) -> dict[str, object]:
        """Send one line, and wait for its answer."""
        self._in.write(json.dumps(question).encode() + b"\n")
        self._in.flush()
        answer: dict[str, object] = json.loads(self._out.readline())
        return answer

    def pour(self, lines: bytes, count: int) -> set[object]:
        """Send many lines, and return the verdicts of their answers."""
        feeder = threading.Thread(target=lambda: (self._in.write(lines), self._in.flush()))
        feeder.start()
        verdicts = {json.loads(self._out.readline())["verdict"] for _ in range(count)}
        feeder.join()
        return verdicts


@contextmanager
def simulate() -> Iterator[Asked]:
    """Run `ebpfnet simulate` over the demo's manifests."""
    command = [sys.executable, "-m", "ebpfnet", "simulate", "-f", str(DEMO), "--interactive"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Asked(process)
        assert process.stdin
        process.stdin.close()
        process.wait()


def _milliseconds(asked: Asked, question: object) -> float:
    begin = time.perf_counter()
    answer = asked.ask(question)
    assert answer.get("ok") is True, answer
    return (time.perf_counter() - begin) * 1000


def run() -> list[Figure]:
    """Ask for flows, and change a pod between them."""
    begin = time.perf_counter()
    with simulate() as asked:
        asked.ask(ASKED[0])
        loaded = time.perf_counter() - begin
        lines = b"".join(json.dumps(flow).encode() + b"\n" for flow in ASKED) * (FLOWS // len(ASKED))
        begin = time.perf_counter()
        verdicts = asked.pour(lines, FLOWS)
        rate = FLOWS / (time.perf_counter() - begin)
        assert verdicts == {"allow"}, verdicts
        pods = list(yaml.safe_load_all((DEMO / "pods.yaml").read_text()))
        taken = []
        for index in range(APPLIES):
            pod = pods[0]
            pod["metadata"]["labels"] = {"round": str(index)}
            pod["status"]["podIPs"][0]["ip"] = f"10.244.1.{100 + index % 2}"
            taken.append(_milliseconds(asked, {"apply": pod}))
    return [
        at_most("simulate: start to the first answer", loaded, "s", 3),
        at_least("simulate: flows", rate, "/s", 3000),
        Figure("simulate: a changed pod applied, p50", percentile(taken, 50), "ms"),
        Figure("simulate: a changed pod applied, p99", percentile(taken, 99), "ms"),
    ]
