"""``ebpfnet lab demo``: a walk through what ebpfnet does, with real connections between pods of a lab cluster."""

from __future__ import annotations

import collections
import ipaddress
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ebpfnet.exits import NotRunning
from ebpfnet.lab import client, folder
from ebpfnet.lab.client import Answer
from ebpfnet.lab.cluster import Lab

INTERRUPTS = (KeyboardInterrupt, SystemExit)  # Ctrl-C; the command line makes the others of SIGTERM and SIGHUP
_CONNECTIONS = 150
_BAR = 40
_MOVE_SECONDS = 10.0
_NODE_PORT = 30080

_COLOURS = {"title": "1;36", "good": "32", "dim": "2"}


def run(name: str) -> None:
    """Walk through everything in a lab of that name, which is taken down at the end, also of an interrupted demo."""
    started = time.monotonic()
    _title("Two nodes, as network namespaces on this machine")
    try:
        lab = Lab.up_for_me(name, folder.DEMO, say=_tell)
    except INTERRUPTS:
        _tell("\ninterrupted; nothing of it is left")
        raise
    title = "Taking everything down"
    try:
        _tell(
            f"up after {time.monotonic() - started:.1f} s: one agent per node, eBPF programs on every pod's interface"
        )
        for chapter in (_services, _outside, _refused, _hairpin, _tables, _forged, _edit, _restart):
            chapter(lab)
    except INTERRUPTS:
        title = "Interrupted: everything is being taken down"
        raise
    except (OSError, NotRunning) as error:
        if not lab.is_there():
            raise NotRunning(f"lab {name!r} was taken down while the demo ran") from error
        raise
    finally:
        _end(lab, title)
    _tell(f"done in {time.monotonic() - started:.1f} s in all. Your turn: `ebpfnet lab up`, then `ebpfnet lab --help`.")


def _end(lab: Lab, title: str) -> None:
    began = time.monotonic()
    try:
        _title(title)
    finally:  # whoever read this may be gone
        lab.down()
    _tell(f"lab {lab.name} is gone, after {time.monotonic() - began:.1f} s")


def _services(lab: Lab) -> None:
    """Show who answers behind a ClusterIP, and how the load spreads."""
    caller, web, dns = lab.pod("client"), lab.service("web"), lab.service("dns")
    _title("One client, one service, three backends on two nodes")
    for address in web.addresses:
        answer = client.http(caller, address, 80)
        _tell(f"GET http://{_shown(address)}:80/  answered by {answer.pod}, which saw {answer.client}")
    for address in dns.addresses:
        answer = client.udp(caller, address, 53)
        _tell(f"UDP {_shown(address)}:53  answered by {answer.pod}, which saw {answer.client}")
    for address in web.addresses:
        _tell(f"\n{_CONNECTIONS} connections to {_shown(address)}:80")
        _spread(client.tcp(caller, address, 80) for _ in range(_CONNECTIONS))
    _tell(f"\n{_CONNECTIONS} UDP clients to {_shown(dns.v4)}:53")
    _spread(client.udp(caller, dns.v4, 53) for _ in range(_CONNECTIONS))


def _outside(lab: Lab) -> None:
    """Show clients outside of the cluster, and the nodes themselves."""
    _title("Clients outside of the cluster, and the nodes themselves")
    outside, node, web = lab.outside(), lab.node("node-a"), lab.service("web")
    for address in folder.balancer_ips(lab.manifests)["default/web"]:
        answer = client.http(outside, address, 80)
        _tell(f"outside -> load balancer {_shown(address)}:80  answered by {answer.pod}, which saw {answer.client}")
    for each in ("node-a", "node-b"):
        answer = client.http(outside, lab.node(each).v4, _NODE_PORT)
        where = f"{lab.node(each).v4}:{_NODE_PORT}"
        _tell(f"outside -> node port {where} of {each}  answered by {answer.pod}, which saw {answer.client}")
    _tell("a backend on the node itself sees the client; for one on another node the node stands in")
    for address, port in ((web.v4, 80), (web.v6, 80), (node.v4, _NODE_PORT)):
        answer = client.http(node, address, port)
        _tell(f"node-a -> {_shown(address)}:{port}  answered by {answer.pod}, which saw {answer.client}")


def _refused(lab: Lab) -> None:
    """Show that a service without endpoints says so at once."""
    _title("A service without endpoints refuses, it does not time out")
    caller, idle = lab.pod("client"), lab.service("idle")
    for address in idle.addresses:
        for call, port in ((client.tcp, 80), (client.udp, 53)):
            began = time.monotonic()
            try:
                call(caller, address, port)
                outcome = "answered?!"
            except OSError as error:
                outcome = error.strerror or type(error).__name__
            took = (time.monotonic() - began) * 1000
            _tell(f"{call.__name__.upper()} {_shown(address)}:{port}  {outcome} after {took:.1f} ms")


def _hairpin(lab: Lab) -> None:
    """Show a pod that reaches itself through its own service."""
    _title("A pod calls its own service")
    mirror = lab.pod("mirror")
    for address in lab.service("mirror").addresses:
        answer = client.http(mirror, address, 80)
        _tell(f"{mirror.name} -> {_shown(address)}:80  answered by {answer.pod}, which saw {answer.client}")


def _tables(lab: Lab) -> None:
    """Show what the kernel holds, through the command line."""
    _title("What the kernel of node-a holds")
    _command(lab, "node-a", "service", "list")
    _command(lab, "node-a", "backend", "list")
    _command(lab, "node-a", "pod", "list")
    _command(lab, "node-a", "flow", "list", rows=8)
    _command(lab, "node-a", "service", "top", "--backends")


def _forged(lab: Lab) -> None:
    """Show that a pod sends from its own address only."""
    _title("A pod that lies about its address")
    caller, target = lab.pod("client"), lab.pod("dns-a")
    forged = lab.pod("web-b").v4
    udp = struct.pack("!HHHH", 4000, 5353, 8 + 5, 0) + b"hello"
    addresses = ipaddress.IPv4Address(forged).packed + ipaddress.IPv4Address(target.v4).packed
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses + udp
    with caller.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for _ in range(3):
            raw.sendto(packet, (target.v4, 0))
    _tell(f"{caller.name} sent 3 datagrams in the name of {forged}; dropped where they left it:")
    _command(lab, "node-a", "drop", "list")


def _edit(lab: Lab) -> None:
    """Take a backend away while the lab runs."""
    _title("Editing a manifest while traffic flows")
    caller, web = lab.pod("client"), lab.service("web")
    path = lab.manifests / "web.yaml"
    folder.edit(path, _without("web-c"))
    edited = time.monotonic()
    _tell(f"default/web-c taken out of {path}")
    last = edited
    while time.monotonic() - last < 0.3:
        for address in web.addresses:
            if client.tcp(caller, address, 80).pod == "default/web-c":
                last = time.monotonic()
        if last - edited > _MOVE_SECONDS:
            raise TimeoutError("web-c still gets new connections")
    moved = "no new connection got there any more"
    if last > edited:
        moved = f"its last new connection came {(last - edited) * 1000:.0f} ms after the edit"
    for address in web.addresses:
        _tell(f"{moved}; {_CONNECTIONS} to {_shown(address)}:80")
        _spread(client.tcp(caller, address, 80) for _ in range(_CONNECTIONS))
        moved = "\nand over IPv6"


def _restart(lab: Lab) -> None:
    """Show that connections do not need the agent."""
    _title("kill -9 of the agent")
    caller, web = lab.pod("client"), lab.service("web")
    lab.kill_agent("node-a", signal.SIGKILL)
    _tell(f"the agent of node-a is dead; {_CONNECTIONS} new connections without it:")
    _spread(client.tcp(caller, web.v4, 80) for _ in range(_CONNECTIONS))
    lab.restart_agent("node-a")
    _tell("and back: it read the maps, found nothing to write, and follows the manifests again")


def _without(pod: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        if document["kind"] == "EndpointSlice":
            document["endpoints"] = [each for each in document["endpoints"] if each["targetRef"]["name"] != pod]

    return change


def _spread(answers: Iterable[Answer]) -> None:
    """Print how answers spread over pods."""
    counts = collections.Counter(answer.pod for answer in answers)
    most = max(counts.values())
    for pod, count in sorted(counts.items()):
        bar = "█" * round(_BAR * count / most)
        _tell(f"  {pod:<16} {_paint('good', bar)} {count}")


def _command(lab: Lab, node: str, *words: str, rows: int | None = None) -> None:
    """Run ``ebpfnet WORDS`` for a node of the lab, and show it as a person would have typed it."""
    line = [*words, "--lab", lab.name, "--node", node]
    print(_paint("dim", f"\n  $ ebpfnet {' '.join(line)}"), flush=True)
    done = subprocess.run([sys.executable, "-m", "ebpfnet", *line], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    for text in lines[: rows and rows + 1]:
        _tell(text)
    if rows is not None and len(lines) > rows + 1:
        _tell(_paint("dim", f"… and {len(lines) - rows - 1} more"))


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _title(text: str) -> None:
    print("\n" + _paint("title", f"== {text}"), flush=True)


def _tell(text: str) -> None:
    print("\n".join(f"  {line}" if line else "" for line in text.split("\n")), flush=True)


def _paint(what: str, text: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m"
