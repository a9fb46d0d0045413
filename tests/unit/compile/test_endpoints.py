"""Which endpoints a set has: a case for each rule of kube-proxy's CategorizeEndpoints and topologyModeFromHints."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import pytest

from ebpfnet import abi
from ebpfnet.compile.endpoints import Choice, Piece, Place, choose, choose_local, chosen, compile_slice, placed
from ebpfnet.model import endpoints
from ebpfnet.model.facts import Hint
from ebpfnet.reconcile.diff import records
from tests.cluster import NODE, TCP, piece

PLACE = Place(NODE, "zone-a")
HERE, THERE = Hint(nodes=(NODE,)), Hint(nodes=("node-b",))
NEAR, FAR = Hint(zones=("zone-a",)), Hint(zones=("zone-b",))
GROUP = abi.identify("default/web:http/6")


def compiled(*slices, place: Place = PLACE) -> list[Piece]:
    return [compile_slice(each, place)[GROUP] for each in slices]


def addresses(run: bytes) -> list[str]:
    return [str(abi.unpack_address(record[:16])) for record in records(run)]


def picked(pieces: Iterable[Piece], choice: Choice) -> list[str]:
    return [each for one in pieces for each in addresses(chosen(one, choice))]


def web(ready=(), **more):
    return piece("web", "x", [f"10.0.0.{n}" for n in ready], **more)


CLUSTER = {
    "ready ones": (web([1, 2], not_ready=["10.0.0.3"], leaving=["10.0.0.4"]), Choice.READY, [1, 2]),
    "what serves while it terminates, when nothing is ready": (
        web(not_ready=["10.0.0.3"], leaving=["10.0.0.4"]),
        Choice.LEAVING,
        [4],
    ),
    "nothing": (web(not_ready=["10.0.0.3"]), Choice.LEAVING, []),
    "those hinted for the zone": (web([1, 2], hints={"10.0.0.1": NEAR, "10.0.0.2": FAR}), Choice.ZONE, [1]),
    "those hinted for the node": (web([1, 2], hints={"10.0.0.1": HERE, "10.0.0.2": THERE}), Choice.NODE, [1]),
    "all, when one has no hint": (web([1, 2], hints={"10.0.0.1": NEAR}), Choice.READY, [1, 2]),
    "all, when none is hinted for the zone": (web([1, 2], hints=dict.fromkeys(["10.0.0.1", "10.0.0.2"], FAR)),
                                              Choice.READY, [1, 2]),
    "the zone's, when none is hinted for the node": (
        web([1, 2], hints={"10.0.0.1": Hint(("zone-a",), ("node-b",)), "10.0.0.2": Hint(("zone-b",), ("node-c",))}),
        Choice.ZONE,
        [1],
    ),
    "the zone's, when one has no hint of nodes": (
        web([1, 2], hints={"10.0.0.1": Hint(("zone-a",), (NODE,)), "10.0.0.2": NEAR}),
        Choice.ZONE,
        [1, 2],
    ),
    "hints of what is not ready don't count": (
        web([1], not_ready=["10.0.0.2"], hints={"10.0.0.1": NEAR}),
        Choice.ZONE,
        [1],
    ),
    "the fallback ignores hints": (web(leaving=["10.0.0.4"], hints={"10.0.0.4": FAR}), Choice.LEAVING, [4]),
}  # fmt: skip


@pytest.mark.parametrize(("given", "choice", "want"), CLUSTER.values(), ids=CLUSTER)
def test_the_cluster_policy_takes(given, choice: Choice, want: list[int]):
    pieces = compiled(given)
    assert choose(pieces) == choice
    assert picked(pieces, choice) == [f"10.0.0.{n}" for n in want]


LOCAL = {
    "ready ones of this node": (web([1, 2], here=["10.0.0.1"]), Choice.READY_HERE, [1]),
    "those, whatever their hints": (
        web([1, 2], here=["10.0.0.1"], hints={"10.0.0.1": FAR, "10.0.0.2": NEAR}),
        Choice.READY_HERE,
        [1],
    ),
    "what serves here while it terminates": (
        web([1], leaving=["10.0.0.2", "10.0.0.3"], here=["10.0.0.2"]),
        Choice.LEAVING_HERE,
        [2],
    ),
    "none, but there are others": (web([1], here=["10.0.0.9"]), Choice.ELSEWHERE, []),
    "none, but others terminate": (web(leaving=["10.0.0.1"]), Choice.ELSEWHERE, []),
    "none, and nobody serves": (web(not_ready=["10.0.0.1"], here=["10.0.0.1"]), Choice.LEAVING_HERE, []),
}


@pytest.mark.parametrize(("given", "choice", "want"), LOCAL.values(), ids=LOCAL)
def test_the_local_policy_takes(given, choice: Choice, want: list[int]):
    pieces = compiled(given)
    assert choose_local(pieces) == choice
    assert picked(pieces, choice) == [f"10.0.0.{n}" for n in want]


def test_all_slices_count():
    hinted = piece("web", "a", ["10.0.0.1"], hints={"10.0.0.1": NEAR})
    bare = piece("web", "b", ["10.0.0.2"])
    assert choose(compiled(hinted)) == Choice.ZONE
    assert choose(compiled(hinted, bare)) == Choice.READY
    assert choose(compiled(hinted, piece("web", "b", [], leaving=["10.0.0.3"]))) == Choice.ZONE
    assert choose(compiled(piece("web", "a", [], leaving=["10.0.0.3"]), bare)) == Choice.READY


def test_a_node_without_a_zone_has_no_hints_of_zones():
    given = web([1], hints={"10.0.0.1": NEAR})
    assert choose(compiled(given, place=Place(NODE))) == Choice.READY


def test_a_piece_in_another_zone_is_what_it_would_have_been_there():
    given = web([1, 2], hints={"10.0.0.1": NEAR, "10.0.0.2": FAR})
    [here], [there] = compiled(given), compiled(given, place=Place(NODE, "zone-b"))
    assert placed(here, Place(NODE, "zone-b")) == there
    assert placed(here, PLACE) == here


def test_an_endpoint_that_stands_in_a_slice_twice_is_what_serves_best():
    [found] = compiled(web([1, 1], not_ready=["10.0.0.1", "10.0.0.2"], leaving=["10.0.0.1", "10.0.0.2"]))
    assert addresses(found.ready) == ["10.0.0.1"]
    assert addresses(found.others.leaving) == ["10.0.0.2"]
    assert addresses(found.others.unready) == []
    assert addresses(found.listed) == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("conditions", range(8))
def test_every_combination_of_conditions_is_listed_once(conditions: int):
    record = endpoints.pack(abi.pack_address(ipaddress.ip_address("10.0.0.1")), conditions)
    slice_ = web()
    given = type(slice_)(slice_.ref, "web", ipv6=False, ports=slice_.ports, endpoints=record)
    [found] = compiled(given)
    assert addresses(found.listed) == ["10.0.0.1"]
    assert bool(found.ready) is bool(conditions & 1)
    assert bool(found.others.leaving) is (conditions == 6)


def test_each_port_has_a_piece_of_its_own():
    ports = [("http", TCP, 8080), ("", TCP, 81)]
    made = compile_slice(web([1], ports=ports), PLACE)
    assert set(made) == {GROUP, abi.identify("default/web:/6")}
    assert {abi.Backend.unpack(each.ready).port for each in made.values()} == {8080, 81}
