"""What the command line says of direct server return."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, Mark
from ebpfnet.maps import pins
from tests.prog.commands import ask, packed

NODE_PORT = abi.Frontend(packed("0.0.0.0"), 30080, abi.Protocol.TCP).pack()
KEY = abi.Tuple(packed("192.0.2.7"), packed("192.168.0.1"), 5000, 30080, abi.Protocol.TCP)


@pytest.fixture
def direct(node: Path) -> Iterator[Path]:
    """Return the folder of a node whose visitor's answers do not pass it."""
    with pins.opened(node / "bpf" / "x") as tables:
        service, flow = tables["services"].get(NODE_PORT), tables["flows"].get(KEY.pack())
        assert service
        assert flow
        marked = dataclasses.replace(abi.Service.unpack(service), marks=Mark.DIRECT | Mark.TAKEN)
        tables["services"].put(NODE_PORT, marked.pack())
        before = abi.Flow.unpack(flow)
        to = dataclasses.replace(before.to, source=KEY.source, source_port=KEY.source_port)
        tables["flows"].put(KEY.pack(), dataclasses.replace(before, to=to, flags=FlowFlag.NAT | FlowFlag.DIRECT).pack())
        yield node
        tables["services"].put(NODE_PORT, service)
        tables["flows"].put(KEY.pack(), flow)


def test_services(direct: Path) -> None:
    rows = json.loads(ask(direct, "service", "list", "-o", "json"))
    assert {row["type"] for row in rows if row["direct"]} == {"NodePort"}
    found = json.loads(ask(direct, "service", "get", "door", "-o", "json"))
    assert [row["direct"] for row in found if row["type"] == "NodePort"] == [True]
    assert "direct server return: backends on other nodes answer" in ask(direct, "service", "get", "door")
    assert "DIRECT|TAKEN" in ask(direct, "map", "dump")


def test_flows(direct: Path) -> None:
    (row,) = json.loads(ask(direct, "flow", "list", "--service", "door", "-o", "json"))
    ends = [row[name] for name in ("source", "destination", "backend", "snat", "flags")]
    assert ends == ["192.0.2.7:5000", "192.168.0.1:30080", "10.0.1.1:8080", "", "DIRECT"]


def test_the_backend_s_node_counts(direct: Path) -> None:
    """It sees both directions; what is open through this node is its to tell."""
    rows = json.loads(ask(direct, "service", "top", "-o", "json"))
    assert [row["open"] for row in rows if row["service"] == "default/door:http"] == [0]
