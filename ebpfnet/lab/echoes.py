"""The echo servers of a lab: one small process per pod, on the ports that its containers name."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ebpfnet.exits import EbpfnetError
from ebpfnet.lab import processes
from ebpfnet.lab.state import Places
from ebpfnet.lab.topology import PodPlan

_SCRIPT = Path(__file__).with_name("echo.py")
_FLAGS = {6: "--tcp", 17: "--udp", 132: "--sctp"}


class EchoError(EbpfnetError):
    """An echo server did not open its ports; the text has its output."""


def record(places: Places, pod: PodPlan) -> Path:
    """Return the record of a pod's echo server."""
    return places.processes / f"echo:{pod.namespace}:{pod.name}"


def is_running(places: Places, pod: PodPlan) -> bool:
    """Tell whether a pod's echo server is alive."""
    process = processes.recorded(record(places, pod))
    return process is not None and process.alive()


def _readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Wait for some to be readable, or closed at the other end; select() would take none above 1,023."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]


def start(places: Places, pods: Iterable[PodPlan], deadline: float) -> None:
    """Start the echo servers of pods, and wait until all their ports are open."""
    waiting: dict[int, PodPlan] = {}
    try:
        for pod in pods:
            readable, writable = os.pipe()
            waiting[readable] = pod
            try:
                _start_one(places, pod, writable)
            finally:
                os.close(writable)
        while waiting:
            ready = _readable(waiting, max(0.0, deadline - time.monotonic()))
            for descriptor in ready:
                pod = waiting[descriptor]
                if not os.read(descriptor, 1):
                    raise EchoError(f"the echo server of {pod.full_name} ended: {_output(places, pod)}")
                del waiting[descriptor]
                os.close(descriptor)
            if not ready:
                raise EchoError(f"the echo server of {next(iter(waiting.values())).full_name} is not ready in time")
    finally:
        for descriptor in waiting:
            os.close(descriptor)


def stop(places: Places, pods: Iterable[PodPlan]) -> None:
    """End the echo servers of pods."""
    found = [processes.recorded(record(places, pod)) for pod in pods]
    processes.stop(process for process in found if process is not None)


def _start_one(places: Places, pod: PodPlan, ready: int) -> None:
    command = [sys.executable, "-I", "-S", str(_SCRIPT), "--pod", pod.full_name, "--ready", str(ready)]
    for protocol, port in pod.ports:
        if protocol in _FLAGS:
            command += [_FLAGS[protocol], str(port)]
    with _log(places, pod).open("wb") as log:
        processes.start(pod.netns, command, record(places, pod), log, keep=[ready])


def _output(places: Places, pod: PodPlan) -> str:
    return _log(places, pod).read_text(errors="replace").strip() or "no output"


def _log(places: Places, pod: PodPlan) -> Path:
    return places.logs / f"{pod.namespace}:{pod.name}.log"
