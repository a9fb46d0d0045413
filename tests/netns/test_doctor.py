"""The doctor beside real rules: it sees them in the kernel, and its commands remove them and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest

from tests.bench import iptables, nftables
from tests.bench.namespace import Namespace
from tests.bench.services import services

MINE = "add table ip mine\nadd chain ip mine prerouting { type filter hook prerouting priority 0 ; }\n"
SERVICES = services(3, [IPv4Address("10.1.0.1"), IPv4Address("10.1.0.2")])


class With(Namespace):
    """A namespace where one tool stands in for iptables-legacy."""

    def __init__(self, tool: str, node: Namespace) -> None:
        self.tool, self.node = tool, node

    def call(self, command: Sequence[str], text: str | None = None, pass_fds: Sequence[int] = ()) -> str:
        words = [word.replace("iptables-legacy", self.tool) for word in command]
        return self.node.call(words, text, pass_fds)


@pytest.fixture
def node() -> Iterator[Namespace]:
    found = Namespace()
    yield found
    found.close()


def findings(node: Namespace) -> list[dict[str, Any]]:
    script = f"{sys.executable} -m ebpfnet doctor -o json --run /nowhere --pins /nowhere; true"
    said = json.loads(node.call(["sh", "-c", script]))
    return [each for each in said["findings"] if each["check"] == "kube-proxy" and each["level"] != "unknown"]


def commands(node: Namespace) -> list[str]:
    return [each["command"] for each in findings(node) if each["level"] == "warning"]


def test_nothing_is_found_in_nothing(node: Namespace):
    assert commands(node) == []


def test_nftables(node: Namespace):
    nftables.load(node, SERVICES)
    node.call(["nft", "-f", "-"], MINE)
    [command] = commands(node)
    assert command == "nft delete table ip kube-proxy"
    node.call(["sh", "-c", command])
    assert commands(node) == []
    assert "prerouting" in node.call(["nft", "list", "table", "ip", "mine"])


@pytest.mark.parametrize("tool", ["iptables-legacy", "iptables-nft"])
def test_iptables(node: Namespace, tool: str):
    iptables.load(With(tool, node), SERVICES)
    node.call([tool, "-A", "INPUT", "-m", "comment", "--comment", "mine", "-j", "ACCEPT"])
    [command] = commands(node)
    assert command.startswith(f"{tool}-save")
    node.call(["sh", "-c", command])
    assert commands(node) == []
    left = node.call([f"{tool}-save"])
    assert "mine" in left
    assert "KUBE-FIREWALL" in left
    assert "KUBE-SERVICES" not in left
