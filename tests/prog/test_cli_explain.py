"""``ebpfnet policy explain``: the deciding policy, rule and entry of its peers, over real pinned maps."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ebpfnet.datapath import build
from tests.prog.policed import Node, answering, brought_up


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, compiled: build.Object) -> Iterator[Node]:
    with brought_up(tmp_path_factory.mktemp("policies"), compiled) as found:
        yield found


@pytest.fixture
def alive(node: Node) -> Iterator[Node]:
    with answering(node) as found:
        yield found


@pytest.mark.parametrize(
    ("source", "to", "port", "ways"),
    [
        ("client", "web", "80", [("allow", []), ("allow", ["NetworkPolicy default/web"])]),
        ("client", "web", "91", [("audit", None), ("deny", ["NetworkPolicy default/web"])]),
        ("client", "web", "23", [("audit", None), ("deny", ["ClusterNetworkPolicy no-telnet"])]),
        ("client", "other", "80", [("audit", ["NetworkPolicy default/quiet"]), ("allow", [])]),
        ("192.0.2.7", "web", "1", [("allow", []), ("allow", ["NetworkPolicy default/web"])]),
        ("192.0.2.200", "web", "1", [("allow", []), ("deny", ["NetworkPolicy default/web"])]),
        ("2001:db8::1", "web", "80", [("allow", []), ("deny", ["NetworkPolicy default/web"])]),
    ],
)
def test_explain(node: Node, tmp_path_factory, source: str, to: str, port: str, ways: list[tuple[str, Any]]):
    cache = tmp_path_factory.getbasetemp() / "cache"
    rows = node.json("explain", "--from", source, "--to", to, "--port", port, "--cache", str(cache))
    assert len(rows) == (2 if "." in source or ":" in source else 4)
    for row, (verdict, policies) in zip(rows, ways * 2, strict=False):
        if policies is not None:
            assert (row["verdict"], row["policies"]) == (verdict, policies), row
        inside = row["of"].startswith("default/")
        assert row["confirmed"] is (True if inside else None), row


CLIENTS: dict[str, Any] = {"policy": "NetworkPolicy default/web", "rule": "ingress[0]", "entry": "ingress[0].from[0]"}
CLIENTS |= {"text": "podSelector app=client", "ports": ["TCP 80-90"]}


def ways(node: Node, *words: str) -> list[dict[str, Any]]:
    return [row for row in node.json("explain", "--no-confirm", *words) if row["direction"] == "ingress"]


@pytest.mark.parametrize(
    ("source", "port", "told"),
    [
        ("client", 80, {"matched": CLIENTS, "also": [], "nearest": []}),
        ("client", 91, {"matched": None, "also": [], "nearest": [CLIENTS]}),
        ("10.0.0.2", 80, {"matched": None, "also": [], "nearest": []}),
    ],
)
def test_explain_names_the_entry_of_the_peers_that_decides(alive: Node, source: str, port: int, told: dict[str, Any]):
    row = ways(alive, "--from", source, "--to", "web", "--port", str(port))[0]
    assert {name: row[name] for name in told} == told


def test_explain_tells_people_which_entry_it_is(alive: Node):
    lines = alive.ask(
        "explain", "--no-confirm", "--from", "192.0.2.7", "--to", "web", "--port", "1"
    ).stdout.splitlines()
    assert lines[0] == "192.0.2.7 -> default/web (10.0.0.1) TCP 1: ALLOW"
    assert lines[-2] == "    ingress[1].from[0]: ipBlock 192.0.2.0/24 except 192.0.2.128/25"
    denied = alive.ask("explain", "--no-confirm", "--from", "client", "--to", "web", "--port", "91").stdout
    assert "ingress[0].from[0] (podSelector app=client) means this peer, but on TCP 80-90 only" in denied
    assert "no rule of theirs means this peer" in alive.ask(
        "explain", "--no-confirm", "--from", "other", "--to", "web", "--port", "80"
    ).stdout  # fmt: skip


@pytest.mark.parametrize(("more", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colors_are_for_terminals_that_want_them(node: Node, more: dict[str, str], colored: bool):
    words = ("explain", "--no-confirm", "--from", "client", "--to", "web", "--port", "80")
    assert "\x1b" not in node.ask(*words).stdout
    terminal, other = pty.openpty()
    where = ("--pins", node.root / "bpf" / "x", "--run", node.root)
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | more
    subprocess.run(
        [sys.executable, "-m", "ebpfnet", "policy", *words, *where], stdout=other, env=environment, check=True
    )
    os.close(other)
    said = os.read(terminal, 65536)
    os.close(terminal)
    assert (b"ALLOW" in said, b"\x1b" in said) == (True, colored)


def test_explain_without_an_agent_knows_the_rule_and_says_what_it_does_not_know(node: Node):
    row = ways(node, "--from", "client", "--to", "web", "--port", "80")[0]
    assert row["matched"] == {**CLIENTS, "entry": None, "text": None, "ports": None}
    text = node.ask("explain", "--no-confirm", "--from", "client", "--to", "web", "--port", "80").stdout
    assert "ingress[0]: which of its peers is not known, the agent does not answer" in text
    text = node.ask("explain", "--no-confirm", "--from", "client", "--to", "web", "--port", "91").stdout
    assert "which rules come near: not known" in text


@pytest.mark.parametrize(
    ("to", "port"),
    [
        ("shop", "80"),
        ("svc/shop", "http"),
        ("service/default/shop", "80"),
        ("svc/default/shop", "http"),
        ("10.96.0.1", "80"),
    ],
)
def test_of_a_service_each_backend_is_explained(node: Node, to: str, port: str):
    rows = ways(node, "--from", "client", "--to", to, "--port", port)
    assert [(row["of"], row["service"], row["called"], row["verdict"]) for row in rows] == [
        ("default/web (10.0.0.1)", "default/shop:http", "10.96.0.1:80", "allow"),
        ("default/other (10.0.0.2)", "default/shop:http", "10.96.0.1:80", "allow"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("client", "svc/shop", "--port", "82"), 9, "--port 82: service default/shop has 80/TCP, 81/TCP (http, more)"),
        (("client", "svc/shop"), 9, "which --port? service default/shop has 80/TCP, 81/TCP"),
        (("client", "svc/shop", "--port", "more"), 9, "service default/shop:more has no backend to ask about"),
        (("client", "svc/nix", "--port", "80"), 1, "no service 'default/nix' in the tables"),
        (("client", "10.96.0.1", "--port", "99"), 9, "10.96.0.1 is a service's cluster IP, and has no TCP port 99"),
        (("svc/shop", "web", "--port", "80"), 1, "--from: 'default/shop' is a service"),
        (("client", "nix", "--port", "80"), 1, "--to: no pod or service 'default/nix' here"),
        (("client", "web"), 2, "--port is missing"),
        (("client", "web", "--port", "http"), 9, "only a service's ports have names"),
        (("client", "web", "--port", "65536"), 2, "65536 is not a port"),
        (("client", "shop", "--protocol", "icmp"), 9, "answers no ICMP"),
        (("2001:db8::1", "10.0.0.1", "--port", "80"), 9, "no address family in common"),
        (("2001:db8::1", "10.96.0.1", "--port", "80"), 9, "no address family in common"),
    ],
)
def test_what_can_not_be_explained_is_named(node: Node, words: tuple[str, ...], code: int, said: str):
    done = node.ask("explain", "--from", words[0], "--to", *words[1:], check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_explain_leaves_nothing(node: Node, tmp_path_factory):
    def state() -> list[dict[bytes, bytes]]:
        return [dict(node.tables[name].items()) for name in ("flows", "rule_hits", "drops", "drop_samples", "pods")]

    before = state()
    cache = tmp_path_factory.getbasetemp() / "cache"
    done = node.ask("explain", "--from", "192.0.2.200", "--to", "web", "--port", "80", "--cache", str(cache))
    assert "confirmed: from_network drops it" in done.stdout
    assert "isolated for ingress by NetworkPolicy default/web" in done.stdout
    assert state() == before
