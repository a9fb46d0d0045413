"""ebpfnet simulate against an oracle, on random clusters; from scratch and step by step."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfnet.datapath import build
from ebpfnet.simulate.interactive import Session
from ebpfnet.simulate.network import private_network
from ebpfnet.simulate.world import World
from tests import clusters
from tests.oracle import Expectation, Oracle

FLOWS = 60


@pytest.fixture(scope="module")
def worlds(compiled: build.Object) -> Iterator[World]:
    with World(compiled) as world:
        yield world


@pytest.fixture
def world(worlds: World) -> Iterator[World]:
    worlds.reset()
    with private_network():
        yield worlds


def session_with(world: World, manifests: Iterable[clusters.Manifest]) -> Session:
    world.reset()
    session = Session(world, [], interactive=True)
    for manifest in manifests:
        assert ask(session, {"apply": manifest}) == {"ok": True}
    return session


def ask(session: Session, question: Any) -> dict[str, Any]:
    (answer,) = session.answers([json.dumps(question)])
    return answer


def check(answer: dict[str, Any], flow: dict[str, Any], expected: Expectation) -> None:
    assert answer["flow"] == flow
    got = (answer["verdict"], answer["reason"], answer["service"], set(answer["backends"]))
    assert got == (expected.verdict, expected.reason, expected.service, set(expected.backends)), answer
    hits = {backend: entry["hits"] for backend, entry in answer["backends"].items()}
    assert sum(hits.values()) == (flow.get("samples", 1) if expected.backends else 0), answer
    for backend, entry in answer["backends"].items():
        assert entry["snat"] == (expected.backends[backend] if entry["hits"] else None), answer


def check_all(session: Session, dice: random.Random, manifests: list[clusters.Manifest]) -> None:
    oracle = Oracle(manifests)
    for flow in clusters.flows(dice, manifests, FLOWS):
        check(ask(session, flow), flow, oracle.expected(flow))


@pytest.mark.parametrize("seed", range(40))
def test_random_clusters_are_as_the_oracle_says(world: World, seed: int) -> None:
    dice = random.Random(seed)
    manifests = clusters.cluster(dice)
    dice.shuffle(manifests)
    check_all(session_with(world, manifests), dice, manifests)
    assert not any(len(list(node.equipment.tables["flows"].items())) for node in world._nodes.values())


@pytest.mark.parametrize("seed", range(100, 112))
def test_step_by_step_is_as_from_scratch(world: World, seed: int) -> None:
    dice = random.Random(seed)
    first, last = clusters.cluster(dice), clusters.cluster(dice)
    session = session_with(world, first)
    wanted = {key_of(item): item for item in last}
    steps: list[dict[str, Any]] = [{"apply": item} for item in last]
    steps += [{"delete": delete_of(item)} for item in first if key_of(item) not in wanted]
    dice.shuffle(steps)
    for step in steps:
        if dice.random() < 0.2:
            ask(session, clusters.flows(dice, first, 1)[0])  # whatever it says: it must leave nothing behind
        assert ask(session, step)["ok"] is True  # on the way two services may claim one address
    check_all(session, dice, last)


def key_of(item: clusters.Manifest) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def delete_of(item: clusters.Manifest) -> dict[str, str]:
    kind, namespace, name = key_of(item)
    return {"kind": kind, "name": name} | ({"namespace": namespace} if namespace else {})


@pytest.fixture
def small(world: World) -> Session:
    dice = random.Random(7)
    pods = [clusters.pod(index, index % 2) for index in range(4)]
    item = clusters.service(dice, 0)
    item["metadata"] |= {"name": "web", "namespace": "default"}
    item["spec"] = {"clusterIPs": ["10.96.0.1"], "ports": [{"name": "http", "port": 80}]}
    piece = {
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.10"]}, {"addresses": ["10.1.1.11"]}],
    }
    return session_with(world, [*clusters.nodes(2), *pods, item, piece])


def test_both_backends_are_listed_and_samples_spread(small: Session) -> None:
    answer = ask(small, {"from": "default/p2", "to": "default/web", "port": "http", "samples": 200})
    assert set(answer["backends"]) == {"10.1.0.10:8080", "10.1.1.11:8080"}
    assert all(entry["hits"] > 50 for entry in answer["backends"].values())
    assert answer["verdict"] == "allow"


def test_the_steps_say_the_way(small: Session) -> None:
    answer = ask(small, {"from": "default/p0", "to": "default/p1", "port": 5})
    way = [(step["direction"], step["node"], step["program"], step["verdict"]) for step in answer["steps"]]
    assert way == [
        ("forward", "n0", "from_pod", "network"),
        ("forward", "n0", "to_network", "stack"),
        ("forward", "n1", "from_network", "pod"),
        ("reply", "n1", "from_pod", "network"),
        ("reply", "n1", "to_network", "stack"),
        ("reply", "n0", "from_network", "pod"),
    ]


OTHER_CLIENTS = [
    ({"from": "192.168.0.1", "to": "default/p0", "port": 5}, "allow"),  # a process of the pod's node
    ({"from": "192.168.0.1", "to": "default/p1", "port": 5}, "allow"),  # of another node
    ({"from": "192.168.0.1", "to": "default/p1", "port": 5, "node": "n1"}, "allow"),  # comes in at its uplink
    ({"from": "203.0.113.5", "to": "default/p1", "port": 5}, "allow"),
    ({"from": "203.0.113.5", "to": "default/p1", "port": 5, "node": "n0"}, "allow"),
    ({"from": "203.0.113.5", "to": "default/web", "port": 80, "node": "n0"}, "allow"),
    ({"from": "default/p0", "to": "203.0.113.5", "port": 5}, "allow"),
    ({"from": "default/p0", "to": "192.168.0.1", "port": 5}, "allow"),
    ({"from": "default/p0", "to": "192.168.0.2", "port": 5}, "allow"),
    ({"from": "default/p0", "to": "10.1.0.99", "port": 5}, "drop"),
    ({"from": "default/p0", "to": "10.1.1.99", "port": 5}, "drop"),
]


@pytest.mark.parametrize(("flow", "verdict"), OTHER_CLIENTS)
def test_clients_and_servers_that_are_no_pods(small: Session, flow: dict[str, Any], verdict: str) -> None:
    answer = ask(small, flow)
    assert (answer["verdict"], answer["reason"]) == (verdict, None), answer


@pytest.mark.parametrize(
    ("destination", "step"),
    [
        ("127.0.0.1", "unreachable"),
        ("::1", "unreachable"),
        ("0.0.0.0", "unreachable"),
        ("::", "unreachable"),
        ("224.0.0.1", "unreachable"),
        ("ff02::1", "unreachable"),
        ("169.254.1.1", "unreachable"),
        ("fe80::1", "unreachable"),
        ("255.255.255.255", "unreachable"),
    ],
)
def test_where_nobody_answers(small: Session, destination: str, step: str) -> None:
    source = {"kind": "Pod", "metadata": {"name": "both"}, "spec": {"nodeName": "n0"}}
    source["status"] = {"podIPs": [{"ip": "10.1.0.77"}, {"ip": "fd01::77"}]}
    assert ask(small, {"apply": source}) == {"ok": True}
    answer = ask(small, {"from": "default/both", "to": destination, "port": 81})
    assert (answer["verdict"], answer["reason"], answer["steps"][-1]["verdict"]) == ("drop", None, step), answer
    assert answer["steps"][-1]["program"] is None


BAD_FLOWS = [
    ({"from": "default/nobody", "to": "default/web", "port": 80}, "default/nobody"),
    ({"from": "default/p0", "to": "default/nothing", "port": 80}, "default/nothing"),
    ({"from": "default/p0", "to": "default/web", "port": "ftp"}, "ftp"),
    ({"from": "default/p0", "to": "default/web"}, "port"),
    ({"from": "default/p0", "to": "default/web", "port": 0}, "port"),
    ({"from": "default/p0", "to": "default/web", "port": 80, "protocol": "GRE"}, "GRE"),
    ({"from": "default/p0", "to": "default/web", "port": 80, "samples": 0}, "samples"),
    ({"from": "default/p0", "to": "default/web", "port": 80, "colour": 1}, "colour"),
    ({"from": "fd01::9", "to": "default/web", "port": 80}, "family"),
    ({"from": "203.0.113.1", "to": "default/p0", "port": 80, "node": "n9"}, "n9"),
    ({"from": "10.1.0.010", "to": "default/p0", "port": 80}, "10.1.0.010"),
    ({"to": "default/p0", "port": 80}, "from"),
    ([], "object"),
]


@pytest.mark.parametrize(("flow", "text"), BAD_FLOWS)
def test_a_flow_that_makes_no_sense_is_answered_with_an_error(small: Session, flow: Any, text: str) -> None:
    answer = ask(small, flow)
    assert answer["flow"] == flow
    assert text in answer["error"]
    assert small.failed


BAD_COMMANDS = [
    {"apply": {"kind": "Pod", "metadata": {"name": "p0"}, "status": {"podIPs": [{"ip": "10.1.0.010"}]}}},
    {"apply": {"kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": "many"}}},
    {"apply": {"metadata": {"name": "x"}}},
    {"apply": 5},
    {"delete": {"kind": "Pod", "namespace": "default", "name": "nobody"}},
    {"delete": {"kind": "Colour", "name": "red"}},
    {"delete": {}},
    {"reset": False},
    {"reset": True, "apply": {}},
]


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_a_command_that_makes_no_sense_changes_nothing(small: Session, command: dict[str, Any]) -> None:
    before = dict(small._world.facts)
    answer = ask(small, command)
    assert answer["ok"] is False
    assert answer["error"]
    assert small._world.facts == before


def test_a_bad_endpoint_is_left_out_and_named(small: Session) -> None:
    piece = {
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["127.0.0.1"]}, {"addresses": ["10.1.1.11"]}],
    }
    answer = ask(small, {"apply": piece})
    assert answer["ok"] is True
    assert "127.0.0.1" in answer["problems"][0]
    assert set(ask(small, {"from": "default/p0", "to": "default/web", "port": 80})["backends"]) == {"10.1.1.11:8080"}


def test_reset_goes_back_to_what_it_started_with(small: Session) -> None:
    assert ask(small, {"reset": True}) == {"ok": True}
    assert "error" in ask(small, {"from": "default/p0", "to": "default/p1", "port": 5})


def command_line(tmp_path: Path, arguments: list[str], lines: list[Any]) -> subprocess.CompletedProcess[str]:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    command = [sys.executable, "-m", "ebpfnet", "simulate", "--cache", str(tmp_path / "cache"), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    manifests = tmp_path / "cluster.json"
    items = [*clusters.nodes(2), clusters.pod(0, 0), clusters.pod(1, 1)]
    manifests.write_text(json.dumps({"kind": "List", "items": items}))
    good = {"from": "default/p0", "to": "default/p1", "port": 5}
    done = command_line(tmp_path, ["-f", str(manifests)], [good, good])
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["allow", "allow"]

    done = command_line(tmp_path, ["-f", str(manifests)], ["not json\n", {**good, "to": "default/x"}, good])
    assert done.returncode == 9
    assert ["error" in json.loads(line) for line in done.stdout.splitlines()] == [True, True, False]

    assert command_line(tmp_path, ["-f", str(tmp_path / "none")], []).returncode == 9
    assert command_line(tmp_path, [], []).returncode == 2
    (tmp_path / "bad.yaml").write_text("kind: [")
    done = command_line(tmp_path, ["-f", str(manifests), "-f", str(tmp_path / "bad.yaml"), "-o", "table"], [good])
    assert done.returncode == 9
    assert "bad.yaml" in done.stderr
    assert "allow" in done.stdout

    done = command_line(tmp_path, ["-f", str(manifests), "-o", "table"], [{**good, "to": "127.0.0.1"}])
    assert done.stdout.splitlines()[-1].split()[4:6] == ["drop", "unreachable"]


def test_the_services_of_a_proxy_of_this_name(tmp_path: Path) -> None:
    manifests = tmp_path / "cluster.json"
    mine, other = ({"service.kubernetes.io/service-proxy-name": name} for name in ("mine", "other"))
    spec = {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}
    items = [*clusters.nodes(1), clusters.pod(0, 0)]
    for name, labels in (("web", mine), ("theirs", other)):
        meta = {"name": name, "labels": labels}
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
    manifests.write_text(json.dumps({"kind": "List", "items": items}))
    asked = {"from": "default/p0", "to": "10.96.0.1", "port": 80}
    done = command_line(tmp_path, ["-f", str(manifests), "--service-proxy-name", "mine"], [asked])
    assert json.loads(done.stdout)["service"] == "default/web:80"
    done = command_line(tmp_path, ["-f", str(manifests)], [asked])
    assert json.loads(done.stdout)["service"] is None
