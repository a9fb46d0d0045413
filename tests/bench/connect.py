"""Connections and requests per second between two pods of one node, through a ClusterIP and through what rivals make
of it.

Every side is a node of its own (three namespaces, two veths, ``wires.py``) with a server that waits; all are built
first, then a client runs on one after the other, in rounds whose order turns, both ends pinned to one CPU. Ratios are
the medians of the rounds' own ratios, because the machine's speed drifts over seconds. The ends are a small C program
(``load.c``): an interpreter's cost on both sides would hide what is measured. One side more has the shortcut at connect
time, for clients in a cgroup of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests import cgroups
from tests.bench import ebpf, iptables, nftables
from tests.bench.figures import Figure, against
from tests.bench.namespace import Namespace
from tests.bench.services import ENDPOINT_PORT, SERVICE_PORT, Service, services
from tests.bench.wires import Pair

ROUNDS = 15
MILLISECONDS = 300
MODES = {"connect": "connect/request/close", "request": "request/response"}
COUNTS = (1, 1_000, 10_000)
SHORTCUT = "shortcut 10,000"


class Side(NamedTuple):
    """A node, and where its client finds the server."""

    name: str
    pair: Pair
    address: str
    port: int
    group: Path | None = None
    """The cgroup of its client; None: whichever we are in."""


class Sample(NamedTuple):
    """One client's run."""

    rate: float
    p50_us: float
    p99_us: float


Load = Callable[[Namespace, Sequence[Service]], None]
Samples = dict[tuple[str, str], list[Sample]]


def _compile() -> Path:
    program = Path("build/bench/load")
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("load.c")], check=True)
    return program


def _side(
    stack: contextlib.ExitStack,
    program: Path,
    name: str,
    fill: Callable[[Pair], str | None],
    group: Path | None = None,
) -> Side:
    """Build a node and start its server; ``fill`` returns the service's address, or None for the pod's own."""
    pair = stack.enter_context(Pair())
    vip = fill(pair)
    server = pair.server.pod.start([str(program), "server", str(ENDPOINT_PORT), str(_cpu())])
    stack.callback(_stop, server)
    assert server.stdout is not None
    if server.stdout.readline() != "ready\n":
        raise RuntimeError(f"{name}: the server did not start")
    address = vip or str(pair.server.addresses[0])
    return Side(name, pair, address, SERVICE_PORT if vip else ENDPOINT_PORT, group)


def _stop(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait()


def _cpu() -> int:
    return max(os.sched_getaffinity(0))


def _direct(_: Pair) -> None:
    return None


def _ours(count: int, pair: Pair) -> str:
    offered = services(count, pair.server.addresses)
    ebpf.attach_programs(pair, offered)
    return str(offered[-1].vip)


def _ours_shortened(count: int, stack: contextlib.ExitStack, group: Path, pair: Pair) -> str:
    offered = services(count, pair.server.addresses)
    for link in ebpf.attach_programs(pair, offered, group):
        stack.callback(os.close, link)
    return str(offered[-1].vip)


def _theirs(load: Load, count: int, pair: Pair) -> str:
    offered = services(count, pair.server.addresses)
    load(pair.node, offered)
    return str(offered[-1].vip)


def _sides(stack: contextlib.ExitStack, program: Path) -> Iterator[Side]:
    yield _side(stack, program, "direct", _direct)
    for count in COUNTS:
        yield _side(stack, program, f"ebpfnet {count:,}", partial(_ours, count))
        yield _side(stack, program, f"nftables {count:,}", partial(_theirs, nftables.load, count))
        yield _side(stack, program, f"iptables {count:,}", partial(_theirs, iptables.load, count))

    group = stack.enter_context(cgroups.made())
    yield _side(stack, program, SHORTCUT, partial(_ours_shortened, COUNTS[-1], stack, group), group)


def _sample(side: Side, program: Path, mode: str) -> Sample:
    command = [str(program), mode, side.address, str(side.port), str(_cpu()), str(MILLISECONDS)]
    if side.group:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(side.group), *command]
    told = json.loads(side.pair.client.pod.call(command))
    return Sample(told["count"] / told["seconds"], told["p50_us"], told["p99_us"])


def _rounds(sides: list[Side], program: Path) -> Samples:
    samples: Samples = {(side.name, mode): [] for side in sides for mode in MODES}
    for number in range(ROUNDS):
        turn = number % len(sides)
        for mode in MODES:
            for side in sides[turn:] + sides[:turn]:
                samples[side.name, mode].append(_sample(side, program, mode))
    return samples


def _figures(samples: Samples, mode: str) -> Iterator[Figure]:
    title = MODES[mode]
    rates = {name: [sample.rate for sample in taken] for (name, of), taken in samples.items() if of == mode}

    def beside(name: str, rival: str, least: float | None = None) -> Figure:
        return against(f"{title}: {name}", "/s", rates[name], rival, rates[rival], least)

    for count in COUNTS:
        yield beside(f"ebpfnet {count:,}", "direct", 0.97)
    for count in COUNTS[:-1]:
        yield beside("ebpfnet 10,000", f"ebpfnet {count:,}", 0.97)
    yield beside(SHORTCUT, "direct")
    yield beside(SHORTCUT, "ebpfnet 10,000")
    yield beside("ebpfnet 10,000", "nftables 10,000", 1.1)
    yield beside("ebpfnet 10,000", "iptables 10,000", 4 if mode == "connect" else None)
    for name in rates:
        if name.startswith(("nftables", "iptables")):
            yield beside("direct", name)
    for (name, of), taken in samples.items():
        if of == mode:
            yield Figure(f"{title}: {name}, p50", statistics.median(sample.p50_us for sample in taken), "µs")
            yield Figure(f"{title}: {name}, p99", statistics.median(sample.p99_us for sample in taken), "µs")


def run() -> list[Figure]:
    """Build every side, run the rounds."""
    with contextlib.ExitStack() as stack:
        program = _compile()
        sides = list(_sides(stack, program))
        samples = _rounds(sides, program)
        return [figure for mode in MODES for figure in _figures(samples, mode)]
