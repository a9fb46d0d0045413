"""The command line over real pinned maps, with no agent alive."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ebpfnet import abi, status
from ebpfnet.exits import NotRunning
from ebpfnet.maps import pins
from tests.cluster import TCP
from tests.prog.commands import ask, call, packed


def test_service_list(node: Path):
    lines = ask(node, "service", "list").splitlines()
    titles = ["SERVICE", "TYPE", "ADDRESS", "PORT", "PROTOCOL", "ENDPOINTS", "POLICY", "AFFINITY"]
    assert lines[0].split() == titles
    for line in (
        "default/web:http ClusterIP 10.96.0.1 80 TCP 2 Cluster -",
        "default/web:dns ClusterIP fd00:96::1 53 UDP 1 Cluster -",
        "default/door:http ClusterIP 10.96.0.2 80 TCP 2 Cluster 60s",
        "default/door:http NodePort 0.0.0.0 30080 TCP 2, 1 local Local 60s",
        "default/door:http LoadBalancer 203.0.113.1 80 TCP 2, 1 local Local 60s",
        "default/door:http ExternalIP 198.51.100.1 80 TCP 2, 1 local Local 60s",
    ):
        assert line.split() in [each.split() for each in lines]


def test_service_get(node: Path):
    found = json.loads(ask(node, "service", "get", "default/web", "-o", "json"))
    mine = next(row for row in found if row["service"] == "default/web:http" and row["address"] == "10.96.0.1")
    assert mine["flows"] == 1
    assert mine["endpoints"][0] == {"backend": "10.0.0.1:8080", "pod": "default/b", "share": None}
    assert mine["endpoints_outside"] is None


def test_service_get_tells_who_is_served_by_whom(node: Path):
    found = {row["type"]: row for row in json.loads(ask(node, "service", "get", "door", "-o", "json"))}
    assert found["NodePort"]["nodeport_addresses"] == ["192.168.0.1"]
    assert [found[kind]["flows"] for kind in ("NodePort", "ClusterIP", "LoadBalancer")] == [1, 0, 0]
    assert found["LoadBalancer"]["source_ranges"] == ["192.0.2.0/24"]
    assert {row["affinity_seconds"] for row in found.values()} == {60}
    assert [each["backend"] for each in found["NodePort"]["endpoints"]] == ["10.0.0.1:8080", "10.0.1.1:8080"]
    assert [each["backend"] for each in found["NodePort"]["endpoints_outside"]] == ["10.0.0.1:8080"]
    lines = ask(node, "service", "get", "door").splitlines()
    assert "203.0.113.1: only for clients of 192.0.2.0/24" in lines
    assert "node ports: at 192.168.0.1" in lines
    here = lines.index("default/door:http, IPv4 endpoints on this node, for clients outside")
    assert lines[here + 2].split() == ["10.0.0.1:8080", "default/b"]


def test_service_top(node: Path):
    (row,) = json.loads(ask(node, "service", "top", "-o", "json", "--service", "door"))
    usage = {"open": 1, "connections": 2, "packets": 35, "bytes": 3500}
    assert row == {"node": "", "service": "default/door:http", **usage}
    rows = json.loads(ask(node, "service", "top", "-o", "json", "--backends", "--limit", "2"))
    assert [(row["backend"], row["packets"], row["bytes"]) for row in rows] == [
        ("10.0.1.1:8080", 25, 2500),
        ("10.0.0.1:8080", 10, 1000),
    ]
    assert call("service", "top", "--service", "nix", "--pins", str(node / "bpf" / "x"), check=False).returncode == 1


def test_service_top_again_and_again(node: Path):
    """What was before it began does not count; what is open does."""
    command = [sys.executable, "-m", "ebpfnet", "service", "top", "-o", "json", "--interval", "0.1"]
    with subprocess.Popen([*command, "--pins", str(node / "bpf" / "x")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = list(itertools.takewhile(lambda line: line.rstrip() != "]", process.stdout))
        process.send_signal(signal.SIGINT)
    found = {row["service"]: row for row in json.loads("".join([*lines, "]"]))}
    assert {name: (row["open"], row["packets"]) for name, row in found.items()} == {
        "default/door:http": (1, 0),
        "default/web:http": (1, 0),
    }


def test_flow_list_shows_translation_both_ways(node: Path):
    (row,) = json.loads(ask(node, "flow", "list", "--service", "door", "-o", "json"))
    ends = [row[name] for name in ("source", "destination", "backend", "snat")]
    assert ends == ["192.0.2.7:5000", "192.168.0.1:30080", "10.0.1.1:8080", "192.168.0.1:1500"]
    assert row["flags"] == "GONE"
    titles = ask(node, "flow", "list").splitlines()[0].split()
    assert {"SNAT", "FLAGS"} <= set(titles)


def test_backend_list_is_by_set(node: Path):
    found = json.loads(ask(node, "backend", "list", "--service", "door", "-o", "json"))
    assert [(row["policy"], row["backend"]) for row in found] == [
        ("Cluster", "10.0.0.1:8080"),
        ("Cluster", "10.0.1.1:8080"),
        ("Local", "10.0.0.1:8080"),
    ]


def test_backend_list(node: Path):
    found = json.loads(ask(node, "backend", "list", "--service", "default/web:dns", "-o", "json"))
    assert [row["backend"] for row in found] == ["10.0.0.1:5353", "10.0.0.2:5353", "[fd00::1]:5353"]


def test_pod_list(node: Path):
    assert "default/client  10.0.0.9  5        02:00:00:00:00:05" in ask(node, "pod", "list")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], 2),
        (["--service", "default/web"], 1),
        (["--service", "web:http"], 1),
        (["--service", "web:dns"], 0),
        (["--pod", "client"], 1),
        (["--pod", "default/client", "--protocol", "tcp", "--state", "established"], 1),
        (["--protocol", "udp"], 0),
    ],
)
def test_flow_list(node: Path, filters: list[str], found: int):
    assert len(json.loads(ask(node, "flow", "list", "-o", "json", *filters))) == found


def test_flow_list_names_both_ends(node: Path):
    line = ask(node, "flow", "list", "--no-headers", "--pod", "client").strip()
    assert "10.0.0.9:40000 (default/client)" in line
    assert "10.0.0.1:8080 (default/b)" in line
    assert "default/web:http" in line
    assert "ESTABLISHED" in line


def test_drop_list(node: Path):
    assert ["from_pod", "SPOOFED_MAC", "3", "180"] in [line.split() for line in ask(node, "drop", "list").splitlines()]
    assert "10.0.0.9:40000 (default/client) -> 10.96.0.1:80 (default/web:http)" in ask(
        node, "drop", "list", "--samples"
    )


def watched(node: Path, *options: str) -> list[str]:
    """Return what a watch prints to a pipe until two drops have been seen."""
    command = [sys.executable, "-m", "ebpfnet", "drop", "list", "--watch", "--pins", str(node / "bpf" / "x"), *options]
    tables = pins.open_all(node / "bpf" / "x")
    first = max(abi.DropSample.unpack(value).sequence for _, value in tables["drop_samples"].items())
    key = abi.Tuple(packed("10.0.0.9"), packed("10.0.0.1"), 40000, 80, TCP)
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(iter(process.stdout),))
        reader.start()
        deadline = time.monotonic() + 60
        for sequence in itertools.count(first + 1):  # what is there when it begins is not printed
            reason = abi.DropReason.NO_ENDPOINTS
            sample = abi.DropSample(sequence, 1, key, 5, 60, abi.Hook.FROM_POD, reason)
            tables["drop_samples"].put((sequence % 1024).to_bytes(4, "little"), sample.pack())
            reader.join(timeout=0.1)
            if len(lines) > 2 or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        reader.join()
    for used in range(first + 1, sequence + 1):
        tables["drop_samples"].put((used % 1024).to_bytes(4, "little"), bytes(abi.DropSample.size()))
    pins.close_all(tables)
    return lines


def test_watched_drops_are_a_json_object_a_line(node: Path):
    found = [json.loads(line) for line in watched(node, "-o", "json")]
    assert {row["reason"] for row in found} == {"NO_ENDPOINTS"}
    assert [row["sequence"] for row in found] == sorted({row["sequence"] for row in found})


def test_watched_drops_have_one_line_of_titles(node: Path):
    lines = watched(node)
    assert lines[0].split() == ["HOOK", "REASON", "PROTOCOL", "LENGTH", "PACKET", "RULE"]
    assert len(lines) > 1
    assert {tuple(line.split()[:4]) for line in lines[1:]} == {("from_pod", "NO_ENDPOINTS", "TCP", "60")}


def test_map_list(node: Path):
    rows = json.loads(ask(node, "map", "list", "-o", "json"))
    assert {row["map"] for row in rows} == set(abi.TABLES)
    assert next(row for row in rows if row["map"] == "slots")["entries"] == 9


def test_map_dump(node: Path):
    assert "SERVICE default/web:http 10.96.0.1:80/TCP backends=2" in ask(node, "map", "dump")
    assert "10.96.0.1:80/TCP -> default/web:http" in ask(node, "map", "dump", "services")
    assert len(ask(node, "map", "dump", "pods", "--raw").split()) == 4


def test_drop_samples_are_dumped_with_names(node: Path):
    lines = ask(node, "map", "dump", "drop_samples").splitlines()
    ends = "TCP 10.0.0.9:40000 -> 10.96.0.1:80"
    assert [line.rpartition("=")[0] for line in lines] == [f"1 from_pod SPOOFED_MAC ifindex=5 length=60 {ends} seen_ns"]


@pytest.mark.parametrize("name", sorted(abi.TABLES))
def test_every_map_can_be_dumped(node: Path, name: str):
    ask(node, "map", "dump", name)


def test_status_says_that_the_agent_is_dead(node: Path):
    done = call("status", "--pins", str(node / "bpf" / "x"), "--run", str(node), check=False)
    assert done.returncode == 8
    assert "NOT running" in done.stdout
    assert "services 13/1024" in done.stdout
    assert done.stderr == "ebpfnet: the agent of this node is not running\n"


def _wait_until_it_answers(run: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            status.ask(run, "ping")
        except NotRunning:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


WHOLE = {"ref": "Service default/web", "field": "spec.ports", "reason": "bad"}
PARTLY = {"ref": "EndpointSlice default/web-1", "field": "endpoints[0]", "reason": "loopback", "partial": True}
FILE = {"ref": "File web.yaml", "field": "", "reason": "empty", "partial": False}


@pytest.mark.parametrize(
    ("problems", "headline", "last"),
    [
        ([], "node n: in sync, agent 0 pid 1 ", "  tables: services 13/1024"),
        ([WHOLE], "node n: in sync, 1 object refused, agent", "  refused: Service default/web: spec.ports: bad"),
        (
            [WHOLE, WHOLE, FILE],
            "in sync, 2 objects refused,",
            "  refused, its last good version stays: File web.yaml: e",
        ),
        (
            [PARTLY],
            "in sync, 1 object served in part,",
            "  left out: EndpointSlice default/web-1: endpoints[0]: loopback",
        ),
    ],
)
def test_status_names_refusals_in_its_first_line(
    node: Path, tmp_path: Path, problems: list[dict[str, Any]], headline: str, last: str
):
    answer = {"node": "n", "synced": True, "pending": 0, "started": 0, "version": "0", "pid": 1, "interfaces": []}
    answer |= {"uplink": ["u"], "watch": [], "problems": problems}
    stop = threading.Event()
    agent = threading.Thread(target=status.serve, args=(tmp_path, {"status": lambda: answer}, stop))
    agent.start()
    try:
        _wait_until_it_answers(tmp_path)
        lines = call("status", "--pins", str(node / "bpf" / "x"), "--run", str(tmp_path)).stdout.splitlines()
    finally:
        stop.set()
        agent.join()
    assert headline in lines[0]
    assert lines[-1].startswith(last)


def test_what_the_agent_refused_is_named_beside_the_service(node: Path, tmp_path: Path):
    lost = {**WHOLE, "ref": "Service default/lost", "field": "spec.externalIPs[0]", "reason": "in no block"}
    answer = {"problems": [WHOLE, WHOLE | {"field": "spec.type"}, PARTLY, FILE, lost]}
    stop = threading.Event()
    agent = threading.Thread(target=status.serve, args=(tmp_path, {"status": lambda: answer}, stop))
    agent.start()
    place = ["--pins", str(node / "bpf" / "x"), "--run", str(tmp_path)]
    try:
        _wait_until_it_answers(tmp_path)
        listed = [line.split() for line in call("service", "list", *place).stdout.splitlines()]
        web = call("service", "get", "web", *place).stdout.splitlines()
        other = call("service", "get", "lost", *place).stdout.splitlines()
        found = json.loads(call("service", "get", "lost", "-o", "json", *place).stdout)
    finally:
        stop.set()
        agent.join()
    assert listed[0][-1] == "PROBLEMS"
    assert ["default/web:http", "ClusterIP", "10.96.0.1", "80", "TCP", "2", "Cluster", "-", "2"] in listed
    assert ["default/lost", *["-"] * 7, "1"] in listed
    assert {"problem: spec.ports: bad", "problem: spec.type: bad"} <= set(web)
    assert other == ["problem: spec.externalIPs[0]: in no block"]
    assert [(row["service"], row["type"], row["problems"]) for row in found] == [
        ("default/lost", None, ["spec.externalIPs[0]: in no block"])
    ]


def test_yaml(node: Path):
    assert "- node: ''" in ask(node, "pod", "list", "-o", "yaml")


def test_a_list_loads_neither_bcc_nor_kubernetes_nor_pyroute2(node: Path):
    place = ["--pins", str(node / "bpf" / "x")]
    command = [sys.executable, "-X", "importtime", "-m", "ebpfnet", "service", "list", *place]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "ebpfnet.cli.lookup" in modules
    assert not [name for name in ("bcc", "kubernetes", "pyroute2", "watchfiles") if f" {name}\n" in modules]
