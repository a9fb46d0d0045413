"""What the tests beside another plugin look at: the agent's word, the tables, and everything of a node's network."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ebpfnet import abi
from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.maps import pins
from tests.netns.conftest import PATIENCE

NODES = ("node-a", "node-b")


@contextlib.contextmanager
def conversation(lab: Lab, caller: Inside, service: str, family: int) -> Iterator[Callable[[], client.Answer]]:
    """Yield a function that asks once more on one connection."""
    with caller.socket(family, socket.SOCK_STREAM) as sock, sock.makefile("rb") as stream:
        sock.settimeout(5)
        sock.connect((lab.service(service).of(family), 80))

        def ask() -> client.Answer:
            sock.sendall(b"hello\n")
            return client.parse(stream.readline())

        yield ask


@contextlib.contextmanager
def manifest(lab: Lab, stem: str, documents: list[dict[str, Any]]) -> Iterator[None]:
    path = lab.manifests / f"{stem}.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    try:
        yield
    finally:
        path.unlink()


def name(document: dict[str, Any]) -> str:
    return str(document["metadata"]["name"])


def served(lab: Lab, node: str) -> list[dict[str, Any]]:
    """Return the pods' interfaces with programs on them, by the agent's word."""
    found = (lab.agent_status(node) or {"interfaces": []})["interfaces"]
    return [each for each in found if each["programs"] == ["from_pod_beside", "to_pod_beside"]]


def addresses(lab: Lab, node: str, pod: str) -> list[str]:
    return [address for each in served(lab, node) if each["pod"] == pod for address in each["addresses"]]


def tables(lab: Lab, node: str, what: str) -> str:
    place = ("--pins", str(lab.pins(node)))
    return lab.node(node).exec(sys.executable, "-m", "ebpfnet", what, "list", *place).stdout


def counted(lab: Lab) -> int:
    """Return how many packets node-a's `to_network` has seen."""
    with pins.opened(lab.pins("node-a")) as tables:
        raw = (
            tables["forwards"].get(struct.pack("=I", abi.Hook.TO_NETWORK * len(abi.Outcome) + abi.Outcome.STACK)) or b""
        )
    size = abi.Counter.size()
    return sum(abi.Counter.unpack(raw[start : start + size]).packets for start in range(0, len(raw), size))


def filters(lab: Lab, node: str) -> list[str]:
    """Return which program is attached where, without the programs' numbers."""
    found = []
    for interface in json.loads(lab.node(node).exec("ip", "-j", "link").stdout):
        for direction in ("ingress", "egress"):
            shown = lab.node(node).exec("tc", "-j", "filter", "show", "dev", interface["ifname"], direction).stdout
            names = [each.get("options", {}).get("bpf_name") for each in json.loads(shown or "[]")]
            found += [f"{interface['ifname']} {direction} {name}" for name in names if name]
    return found


def trace(node: Inside) -> dict[str, Any]:
    """Return everything about a node's network that somebody could have changed."""
    shown: dict[str, Any] = {
        what: node.exec(*what.split()).stdout
        for what in ("ip -j route show table all", "ip -j -6 route show table all", "ip -j rule", "tc qdisc show",
                     "ip -j addr", "nft list ruleset")
    }  # fmt: skip
    shown["nft list ruleset"] = [line for line in shown["nft list ruleset"].splitlines() if "counter" not in line]
    for each in json.loads(node.exec("ip", "-d", "-j", "link").stdout):
        data = each.get("linkinfo", {}).get("info_data", {})
        each.get("linkinfo", {})["info_data"] = {key: value for key, value in data.items() if "timer" not in key}
        port = each.get("linkinfo", {}).get("info_slave_data", {})
        each["linkinfo"] = each.get("linkinfo", {}) | {
            "info_slave_data": {key: value for key, value in port.items() if "timer" not in key}
        }
        shown[f"link {each['ifname']}"] = each
        for direction in ("ingress", "egress"):
            command = ("tc", "filter", "show", "dev", each["ifname"], direction)
            shown[f"filter {each['ifname']} {direction}"] = node.exec(*command).stdout
    shown["sysctl"] = node.run(settings)
    return shown


def settings() -> dict[str, str]:
    found = {}
    for place in ("ipv4", "ipv6", "bridge", "core"):
        for path in Path("/proc/sys/net", place).rglob("*"):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.is_file():
                    found[str(path)] = path.read_text()
    return found


def deadline() -> float:
    """Return until when an agent may take to be ready."""
    return time.monotonic() + PATIENCE


def half_open() -> list[str]:
    """Return the TCP sockets here that are neither listening nor done (``include/net/tcp_states.h``)."""
    lines = [
        line for name in ("tcp", "tcp6") for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]
    ]
    return [line for line in lines if line.split()[3] not in {"06", "0A"}]
