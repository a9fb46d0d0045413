"""The agent dies and comes back: connections notice nothing, and nothing is written twice."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ebpfnet.lab import client, folder
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.maps import pins
from tests.netns.conftest import Wait
from tests.netns.kube import NODES

TABLES = ("services", "slots", "pods", "names")


@dataclass
class Load:
    """What a kind of load did, and what went wrong."""

    done: int = 0
    port: int = 0
    failures: list[str] = field(default_factory=list)


def test_killed_under_load_and_restarted(lab: Lab, caller: Inside, family: int, wait: Wait):
    web, dns = lab.service("web").of(family), lab.service("dns").of(family)
    loads = [
        (new_connections, (caller, web, 80)),
        (one_connection, (caller, web, 80)),
        (datagrams, (caller, dns, 53)),
    ]
    with running(loads) as results:
        progress(results, wait)
        for node in NODES:
            lab.kill_agent(node, signal.SIGKILL)
            assert lab.agent_process(node) is None
        progress(results, wait)
        for node in NODES:
            lab.start_agent(node)
        lab.wait_synced()
        progress(results, wait)
        lost = lost_segments(lab, results[1].port)
    assert [result.failures for result in results] == [[], [], []]
    assert lost == 0


def test_restart_writes_nothing(lab: Lab):
    before = {node: contents(lab, node) for node in NODES}
    for node in NODES:
        lab.restart_agent(node)
    assert {node: contents(lab, node) for node in NODES} == before
    assert [(lab.agent_status(node) or {})["writes"] for node in NODES] == [0, 0]


def test_restart_keeps_the_programs_attached(lab: Lab):
    """Replaced, never detached: at no moment is there an interface without its program."""
    before = filters(lab, "node-a")
    lab.restart_agent("node-a")
    assert filters(lab, "node-a") == before
    assert len(before) == 2 * (len(lab.plan.pods_of("node-a")) + 1)


def test_changes_made_while_the_agent_was_dead(lab: Lab, caller: Inside, wait: Wait):
    path = lab.manifests / "web.yaml"
    original = path.read_text()
    address = lab.service("web").v4
    try:
        lab.kill_agent("node-a")
        folder.edit(path, lambda document: document.update(endpoints=document.get("endpoints", [])[:1]))
        lab.restart_agent("node-a")
        assert {client.tcp(caller, address, 80).pod for _ in range(40)} == {"default/web-a"}
    finally:
        path.write_text(original)
        wait(lambda: len({client.tcp(caller, address, 80).pod for _ in range(40)}) == 3)


@contextmanager
def running(loads: Sequence[tuple[Callable[..., None], tuple[object, ...]]]) -> Iterator[list[Load]]:
    """Run loads in threads until the block ends."""
    stop = threading.Event()
    results = [Load() for _ in loads]
    threads = [
        threading.Thread(target=work, args=(result, stop, *arguments), daemon=True)
        for result, (work, arguments) in zip(results, loads, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def progress(results: list[Load], wait: Wait) -> None:
    """Wait until each load got another hundred things done, or failed."""
    goals = [result.done + 100 for result in results]

    def there() -> bool:
        pairs = zip(results, goals, strict=True)
        return any(result.failures for result in results) or all(result.done >= goal for result, goal in pairs)

    wait(there)


def new_connections(result: Load, stop: threading.Event, caller: Inside, address: str, port: int) -> None:
    """Connect, ask, close, again and again."""
    while not stop.is_set():
        try:
            client.tcp(caller, address, port, timeout=2)
        except OSError as error:
            result.failures.append(repr(error))
        result.done += 1


def one_connection(result: Load, stop: threading.Event, caller: Inside, address: str, port: int) -> None:
    """Ask again and again on one connection."""
    with caller.socket(client.family(address), socket.SOCK_STREAM) as sock:
        sock.connect((address, port))
        result.port = sock.getsockname()[1]
        sock.settimeout(2)
        with sock.makefile("rb") as stream:
            while not stop.is_set():
                try:
                    sock.sendall(b"hello\n")
                    client.parse(stream.readline())
                except (OSError, ValueError) as error:
                    result.failures.append(repr(error))
                    return
                result.done += 1


def datagrams(result: Load, stop: threading.Event, caller: Inside, address: str, port: int) -> None:
    """Ask again and again from one socket, one datagram at a time; one without an answer is lost."""
    with caller.socket(client.family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.settimeout(1)
        while not stop.is_set():
            sock.send(b"hello")
            try:
                sock.recv(2048)
            except OSError as error:
                result.failures.append(repr(error))
            result.done += 1


def lost_segments(lab: Lab, port: int) -> int:
    """Return how many segments of an open connection of a client's ``port`` did not arrive, in both directions.

    Sent again, less what the other end then had twice: on a busy machine an answer may be late enough for a tail loss
    probe (RFC 8985), and a duplicate SACK tells (RFC 2883).
    """
    which = ["state", "established", f"( sport = :{port} or dport = :{port} )"]
    shown = [lab.pod(pod.full_name).exec("ss", "-tinH", *which).stdout for pod in lab.plan.pods]
    ends = [text for text in shown if text.strip()]
    assert len(ends) == 2, shown
    return sum(_found(r"retrans:\d+/(\d+)", text) - _found(r"dsack_dups:(\d+)", text) for text in ends)


def _found(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def contents(lab: Lab, node: str) -> dict[str, dict[bytes, bytes]]:
    """Return the raw entries of a node's tables that the agent writes."""
    with pins.opened(lab.pins(node)) as tables:
        return {name: dict(tables[name].items()) for name in TABLES}


def filters(lab: Lab, node: str) -> list[str]:
    """Return which program is attached where, without the programs' numbers."""
    found = []
    for interface in ("uplink", *(pod.host_interface for pod in lab.plan.pods_of(node))):
        for direction in ("ingress", "egress"):
            shown = lab.node(node).exec("tc", "-j", "filter", "show", "dev", interface, direction).stdout
            names = [each.get("options", {}).get("bpf_name") for each in json.loads(shown)]
            found += [f"{interface} {direction} {name}" for name in names if name]
    return found
