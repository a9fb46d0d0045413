"""The agents of a lab: one real process per node, and the questions its socket answers."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ebpfnet.exits import EbpfnetError
from ebpfnet.lab import processes
from ebpfnet.lab.state import Options, Places
from ebpfnet.lab.topology import UPLINK, NodePlan, Plan

_POLL_SECONDS = 0.05
_LOG_TAIL = 15
_SOCKET_PATH_MAX = 107  # sun_path, unix(7)


class AgentError(EbpfnetError):
    """An agent ended, or was not ready in time; the text has the end of its log."""


def record(places: Places, node: str) -> Path:
    """Return the record of a node's agent."""
    return places.processes / f"agent:{node}"


def log_path(places: Places, node: str) -> Path:
    """Return the log of a node's agent, since its last start."""
    return places.run(node) / "agent.log"


def is_running(places: Places, node: str) -> bool:
    """Tell whether a node's agent is alive."""
    process = processes.recorded(record(places, node))
    return process is not None and process.alive()


def start(places: Places, node: NodePlan, options: Options) -> None:
    """Start a node's agent; does not wait for it."""
    run = places.run(node.name)
    if len(str(run / "agent.sock")) > _SOCKET_PATH_MAX:
        raise AgentError(f"{run}/agent.sock is too long for a socket: give the lab or Node {node.name} a shorter name")
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        log_path(places, node.name).replace(run / "agent.log.old")
    with log_path(places, node.name).open("ab") as log:
        processes.start(node.netns, command(places, node, options), record(places, node.name), log)


def stop(places: Places, nodes: Iterable[str]) -> None:
    """End the agents of nodes; pinned programs and maps stay."""
    found = [processes.recorded(record(places, node)) for node in nodes]
    processes.stop([process for process in found if process is not None], grace=10.0)


def ask(places: Places, node: str, what: str, timeout: float = 2.0) -> dict[str, Any] | None:
    """Return an agent's answer to ``{"get": what}``, or None when it does not answer."""
    path = str(places.run(node) / "agent.sock")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(path)
            sock.sendall(json.dumps({"get": what}).encode() + b"\n")
            with sock.makefile("rb") as answer:
                result = json.loads(answer.readline())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def wait_ready(places: Places, plan: Plan, deadline: float, say: Callable[[str], None]) -> None:
    """Wait until every agent is synced, has nothing left to write, and serves all its pods; or ``AgentError``."""
    waiting = {node.name: "no answer yet" for node in plan.nodes}
    while waiting:
        for node in tuple(waiting):
            missing = lacks(plan, node, ask(places, node, "status"))
            process = processes.recorded(record(places, node))
            if missing is None:
                del waiting[node]
                say(f"agent of {node} is ready")
            elif process is not None and not process.alive():
                raise AgentError(f"the agent of {node} ended\n{log_tail(places, node)}")
            else:
                waiting[node] = missing
        if waiting and time.monotonic() > deadline:
            node, missing = next(iter(waiting.items()))
            raise AgentError(f"the agent of {node} is not ready in time: {missing}\n{log_tail(places, node)}")
        if waiting:
            time.sleep(_POLL_SECONDS)


def lacks(plan: Plan, node: str, status: Mapping[str, Any] | None) -> str | None:
    """Return what an agent still lacks by its own status, None when it lacks nothing."""
    if status is None:
        return "no answer on its socket"
    if not status.get("synced"):
        return "has not read the manifests yet"
    if pending := status.get("pending"):
        return f"{pending} units are not written yet"
    served = {each.get("pod") for each in status.get("interfaces", []) if each.get("programs")}
    absent = [pod.full_name for pod in plan.pods_of(node) if not pod.host_network and pod.full_name not in served]
    return f"does not serve the interface of {', '.join(absent)} yet" if absent else None


def log_tail(places: Places, node: str) -> str:
    """Return the end of an agent's log."""
    path = log_path(places, node)
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        return "\n".join([f"end of {path}:", *("  " + line for line in lines)])
    return f"{path} can't be read"


def command(places: Places, node: NodePlan, options: Options) -> list[str]:
    """Return the command line of a node's agent."""
    run = places.run(node.name)
    own = {} if "--kubeconfig" in options.agent_arguments else {"--manifests": str(places.manifests)}
    settings = own | {
        "--node-name": node.name,
        "--pins": str(places.pins(node.name)),
        "--run": str(run),
        "--uplink": UPLINK,
    }
    flags = [text for pair in settings.items() for text in pair]
    return [sys.executable, "-m", "ebpfnet", "agent", *flags, *options.agent_arguments]
