"""The envelopes: what a reader makes of events and items."""

from __future__ import annotations

import msgspec
import pytest

from ebpfnet.watch.kube import wire
from ebpfnet.watch.schema import PeerObject

POD = b'{"metadata":{"name":"x","namespace":"d","resourceVersion":"7"},"status":{"podIP":"10.0.0.1"}}'
BRIEF, PLAIN = wire.Reader(PeerObject), wire.Reader()


def event(kind: str, text: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), text)


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED", "DELETED"])
def test_a_change_is_read_with_its_object(kind: str):
    found = BRIEF.event(event(kind, POD))
    assert (found.type, type(found.object)) == (kind, PeerObject)
    assert wire.identity(found.object) == wire.identity(PLAIN.event(event(kind, POD)).object) == ("d/x", 7)


@pytest.mark.parametrize("kind", ["BOOKMARK", "ERROR", "NEW"])
def test_the_object_of_any_other_event_stays_bytes(kind: str):
    assert isinstance(BRIEF.event(event(kind, POD)).object, msgspec.Raw)
    assert isinstance(BRIEF.event(event(kind, b'{"code":410}')).object, msgspec.Raw)


@pytest.mark.parametrize("text", [b'{"metadata":{"name":"x","namespace":"d","labels":7}}', b"{}", b"[]"])
def test_what_does_not_fit_stays_bytes(text: bytes):
    assert isinstance(BRIEF.event(event("ADDED", text)).object, msgspec.Raw)
    assert isinstance(BRIEF.item(msgspec.Raw(text)), msgspec.Raw)


def test_an_item_is_read():
    assert isinstance(BRIEF.item(msgspec.Raw(POD)), PeerObject)
    assert isinstance(PLAIN.item(msgspec.Raw(POD)), msgspec.Raw)


@pytest.mark.parametrize("text", [b'{"type":"ADDED","object":{', b'{"object":{}}', b"no"])
def test_what_is_no_event_raises(text: bytes):
    for reader in (BRIEF, PLAIN):
        with pytest.raises(msgspec.MsgspecError):
            reader.event(text)


@pytest.mark.parametrize("cuts", [(), (3,), (7,), (6,), (8, 14), tuple(range(1, 21))])
def test_lines_are_whole_however_they_come(cuts: tuple[int, ...]):
    text = b'{"a":1}\n\n{"b":2}\n{"c"'
    lines, ends = wire.Lines(), (*cuts, len(text))
    found = [line.strip() for begin, end in zip((0, *cuts), ends, strict=True) for line in lines.feed(text[begin:end])]
    assert found == [b'{"a":1}', b'{"b":2}']
    assert lines.partial
