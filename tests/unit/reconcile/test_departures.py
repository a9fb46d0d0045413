"""Backends that leave are told to the datapath at once, and let off when they come back."""

import pytest

from ebpfnet import abi
from ebpfnet.abi import Departure
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import TableError
from ebpfnet.model.facts import Delete, Upsert
from ebpfnet.reconcile.departures import ROOM
from tests.cluster import TCP, piece, service
from tests.unit.reconcile import test_kinds
from tests.unit.reconcile.test_kinds import SET, THREE, WEB, backend

LOCAL = abi.identify("default/web:http/6#local")
ITSELF = bytes(20)


def started(*facts):
    reconciler, tables = test_kinds.started(*facts)
    return reconciler, tables | {name: MemoryTable(abi.TABLES[name]) for name in ("departed", "turn")}


def told(tables) -> dict[tuple[int, bytes], Departure]:
    return {
        (int.from_bytes(key[:8], "little"), key[8:28]): Departure(int.from_bytes(value, "little"))
        for key, value in tables["departed"].items()
    }


def turn(tables) -> int:
    return int.from_bytes(tables["turn"].get(bytes(4)) or b"", "little")


def happens(reconciler, tables, *changes) -> int:
    """Apply changes as the agent does; returns how many announcements that made."""
    before = turn(tables)
    reconciler.apply(changes)
    reconciler.departures.announce(tables, reconciler.fate)
    return turn(tables) - before


def test_a_backend_that_goes_and_comes_back():
    reconciler, tables = started(WEB, THREE)
    assert happens(reconciler, tables, Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"]))) == 1
    assert told(tables) == {(SET, backend("10.0.0.3")): Departure.GONE}
    assert happens(reconciler, tables, Upsert(THREE)) == 0
    assert told(tables) == {}


def test_a_backend_that_comes_back_in_another_slice_and_another_port():
    reconciler, tables = started(WEB, THREE)
    happens(reconciler, tables, Delete(THREE.ref))
    assert len(told(tables)) == 3
    assert happens(reconciler, tables, Upsert(piece("web", "b", ["10.0.0.2"]))) == 0
    assert told(tables).keys() == {(SET, backend("10.0.0.1")), (SET, backend("10.0.0.3"))}


def test_what_terminates_is_unfit_when_it_does_not_serve_and_gone_when_it_is_gone():
    reconciler, tables = started(WEB, THREE)
    two = ["10.0.0.1", "10.0.0.2"]
    assert happens(reconciler, tables, Upsert(piece("web", "a", two, leaving=["10.0.0.3"]))) == 0
    assert happens(reconciler, tables, Upsert(piece("web", "a", two, not_ready=["10.0.0.3"]))) == 1
    assert told(tables) == {(SET, backend("10.0.0.3")): Departure.UNFIT}
    assert happens(reconciler, tables, Upsert(piece("web", "a", two))) == 1
    assert told(tables) == {(SET, backend("10.0.0.3")): Departure.GONE}


def test_every_set_of_a_port():
    reconciler, tables = started(
        service("web", "10.96.0.1", ports=[("http", TCP, 80, 30080)], external_local=True), THREE
    )
    happens(reconciler, tables, Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"])))
    assert told(tables).keys() == {(each, backend("10.0.0.3")) for each in (SET, LOCAL)}


def test_what_another_slice_lists_has_not_left():
    reconciler, tables = started(WEB, THREE, piece("web", "b", ["10.0.0.3"]))
    assert happens(reconciler, tables, Delete(THREE.ref)) == 1
    assert told(tables).keys() == {(SET, backend("10.0.0.1")), (SET, backend("10.0.0.2"))}


def test_a_service_that_goes_and_comes_back():
    reconciler, tables = started(WEB, THREE)
    assert happens(reconciler, tables, Delete(WEB.ref)) == 1
    assert told(tables) == {(SET, ITSELF): Departure.UNFIT}
    assert happens(reconciler, tables, Upsert(WEB)) == 0
    assert told(tables) == {}


def test_what_all_flows_were_judged_by_is_told_no_longer():
    reconciler, tables = started(WEB, THREE)
    departures = reconciler.departures
    happens(reconciler, tables, Upsert(piece("web", "a", ["10.0.0.1", "10.0.0.2"])))
    mark = departures.mark()
    happens(reconciler, tables, Upsert(piece("web", "a", ["10.0.0.1"])))
    departures.forget(tables, mark)
    assert told(tables).keys() == {(SET, backend("10.0.0.2"))}
    departures.forget(tables, departures.mark())
    assert not told(tables)


def test_another_agent_begins_with_nothing_told():
    reconciler, tables = started(WEB, THREE)
    happens(reconciler, tables, Delete(THREE.ref))
    later, _ = started(WEB, THREE)
    later.departures.reset(tables)
    assert not told(tables)
    assert later.departures.mark() == turn(tables) == 1


def test_what_can_not_be_let_off_is_let_off_before_the_next_is_told():
    reconciler, tables = started(WEB, THREE)
    happens(reconciler, tables, Delete(THREE.ref))
    failing = {**tables, "departed": FaultyTable(tables["departed"], 1, 0)}
    reconciler.apply([Upsert(THREE)])
    with pytest.raises(TableError):
        reconciler.departures.announce(failing, reconciler.fate)
    assert turn(tables) == 1
    reconciler.departures.announce(tables, reconciler.fate)
    assert not told(tables)


def test_what_is_too_much_is_left_to_the_sweep():
    reconciler, tables = started(WEB)
    for number in range(ROOM // 250 + 1):
        many = [f"10.{number + 1}.0.{last}" for last in range(1, 251)]
        happens(reconciler, tables, Upsert(piece("web", "a", many)))
        happens(reconciler, tables, Upsert(piece("web", "a", [])))
    assert ROOM - 250 < len(told(tables)) <= ROOM
