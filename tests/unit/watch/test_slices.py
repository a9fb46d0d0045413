"""EndpointSlices to facts: where endpoints are, for whom they are meant, and how much they weigh."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ebpfnet.model.endpoints import unpack
from ebpfnet.model.facts import EndpointSlice, Hint, Kind
from ebpfnet.watch.decode import decode, decode_bytes
from ebpfnet.watch.fields import Decoded

WEIGHT = "ebpfnet.io/weight"


def read(*endpoints: object, family: str = "IPv4", **annotations: Any) -> Decoded:
    """Decode a slice both ways."""
    labels = {"kubernetes.io/service-name": "web"}
    meta = {"name": "web-a", "namespace": "default", "labels": labels, "annotations": annotations}
    item = {"metadata": meta, "addressType": family, "endpoints": list(endpoints), "ports": [{"port": 80}]}
    found = decode({**item, "kind": "EndpointSlice"})
    assert decode_bytes(Kind.ENDPOINT_SLICE, json.dumps(item).encode()) == found
    return found


def fact(*endpoints: object, **annotations: Any) -> EndpointSlice:
    found = read(*endpoints, **annotations)
    assert found.problems == ()
    assert isinstance(found.fact, EndpointSlice)
    return found.fact


def at(number: int, **more: Any) -> dict[str, Any]:
    return {"addresses": [f"10.1.0.{number}"], **more}


def zone(*names: str) -> dict[str, Any]:
    return {"forZones": [{"name": name} for name in names]}


def test_nodes_stand_beside_the_endpoints():
    assert fact(at(1, nodeName="a"), at(2), at(3, nodeName=None), at(4, nodeName="b")).nodes == ("a", "", "", "b")


@pytest.mark.parametrize("node", [None, ""])
def test_without_any_node_there_are_no_nodes(node: str | None):
    assert fact(at(1, nodeName=node), at(2)).nodes == ()
    assert fact().nodes == ()


def test_a_node_s_name_is_one_string_however_many_endpoints_it_has():
    first, second = (fact(at(1, nodeName="node-17"), at(2, nodeName="node-17")) for _ in range(2))
    assert len({id(name) for name in (*first.nodes, *second.nodes)}) == 1


def test_hints_stand_beside_the_endpoints():
    both = {**zone("a", "b"), "forNodes": [{"name": "n"}]}
    found = fact(at(1, hints=zone("a")), at(2, hints=both), at(3), at(4, hints={"forNodes": [{"name": "n"}]}))
    assert found.hints == (Hint(("a",)), Hint(("a", "b"), ("n",)), Hint(), Hint((), ("n",)))


@pytest.mark.parametrize("hints", [None, {}, {"forZones": None}, {"forZones": [], "forNodes": []}])
def test_without_any_hint_there_are_no_hints(hints: object):
    assert fact(at(1, hints=hints), at(2)).hints == ()
    assert fact().hints == ()


def test_equal_hints_are_one_object():
    found = fact(*(at(number, hints=zone("a")) for number in range(1, 9)))
    assert len({id(hint) for hint in found.hints}) == 1


@pytest.mark.parametrize(
    ("family", "good", "bad"),
    [("IPv4", "10.1.0.1", "fd00::1"), ("IPv6", "fd00::1", "10.1.0.1"), ("IPv4", "10.1.0.1", "127.0.0.1")],
)
def test_what_is_left_out_leaves_no_hole(family: str, good: str, bad: str):
    """An endpoint of the wrong family is named, and its node and hints go with it."""
    ends = [{"addresses": [bad], "nodeName": "x", "hints": zone("x")}]
    ends += [{"addresses": [good], "nodeName": "a", "hints": zone("a")}]
    found = read(*ends, ends[0], family=family)
    assert isinstance(found.fact, EndpointSlice)
    assert len(list(unpack(found.fact.endpoints))) == 1
    assert (found.fact.nodes, found.fact.hints) == (("a",), (Hint(("a",)),))
    assert [problem.field for problem in found.problems] == ["endpoints[0].addresses[0]", "endpoints[2].addresses[0]"]


@pytest.mark.parametrize(("text", "weight"), [(None, 1), ("1", 1), ("3", 3), ("100", 100)])
def test_a_slice_s_endpoints_weigh_what_it_says(text: str | None, weight: int):
    assert fact(at(1), **{WEIGHT: text, "example.com/other": 1}).weight == weight


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "", " 3", "03", "three", "²", "9" * 5000, 3, True, []])
def test_a_weight_that_is_none_is_named_and_is_1(text: object):
    given: dict[str, Any] = {WEIGHT: text}
    found = read(at(1), **given)
    assert isinstance(found.fact, EndpointSlice)
    assert found.fact.weight == 1
    [problem] = found.problems
    assert problem.field == f"metadata.annotations[{WEIGHT}]"
    assert problem.reason == f'{text!r} is not a weight ("1" to "100"); 1 is used'


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ({"nodeName": 1}, "endpoints[0].nodeName: a text is expected, not a number"),
        ({"hints": []}, "endpoints[0].hints: an object is expected, not a list"),
        ({"hints": {"forZones": ["a"]}}, "endpoints[0].hints.forZones[0]: an object is expected, not a text"),
        ({"hints": {"forZones": [{}]}}, "endpoints[0].hints.forZones[0].name: missing"),
        (
            {"hints": {"forNodes": [{"name": None}]}},
            "endpoints[0].hints.forNodes[0].name: a text is expected, not null",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_whole(endpoint: dict[str, Any], text: str):
    found = read(at(1, **endpoint))
    assert found.fact is None
    assert [f"{problem.field}: {problem.reason}" for problem in found.problems] == [text]


@pytest.mark.parametrize("key", ["ebpfnet.io/weigth", "ebpfnet.io/load-balancing"])
def test_an_annotation_of_ours_that_a_slice_has_not_is_named(key: str):
    found = read(at(1), **{key: "3"})
    assert [str(problem) for problem in found.problems] == [
        f"EndpointSlice default/web-a: metadata.annotations[{key}]: there is no such annotation; did you mean {WEIGHT}?"
    ]


@pytest.mark.parametrize("text", [None, "", "x", "0001-01-01T00:00:00Z", 7])
def test_a_time_of_a_change_that_is_none_is_not_known(text: object):
    given: dict[str, Any] = {"endpoints.kubernetes.io/last-change-trigger-time": text}
    assert read(at(1), **given).since == 0.0
