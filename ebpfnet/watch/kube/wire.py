"""The envelopes of the API: pages of a list, events of a watch, and the Status of an error.

An object stays bytes (``msgspec.Raw``) until its kind's decoder reads the few fields that are used; a ``Reader`` of a
kind's own struct reads these in the same pass. Objects of other events are read after their type: that of an ERROR has
no name, that of a BOOKMARK has null for its lists.
Source: k8s.io/apimachinery, ``meta/v1`` ``ListMeta``, ``WatchEvent``, ``Status``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

INITIAL_EVENTS_END = "k8s.io/initial-events-end"  # KEP-3157


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """camelCase on the wire."""


class ListMeta(_Struct):
    """``ListMeta``."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(_Struct):
    """A list, or one page of it."""

    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


T = TypeVar("T")


class Event(_Struct, Generic[T]):
    """``WatchEvent``."""

    type: str
    object: T


class StatusDetails(_Struct):
    """``StatusDetails``."""

    retry_after_seconds: int = 0


class Status(_Struct):
    """``Status``: what went wrong, in the server's words."""

    kind: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None


class Meta(_Struct):
    """What tells an object and its version, whatever its kind."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class Bookmark(_Struct):
    """The object of a BOOKMARK, and the least that is read of any other."""

    metadata: Meta


class _Brief(_Struct):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Identity(_Struct):
    metadata: _Brief


class Named(Protocol):
    """An object that is read already."""

    metadata: Any


Item = msgspec.Raw | Named
CHANGED = frozenset({"ADDED", "MODIFIED", "DELETED"})


read_page = msgspec.json.Decoder(Page).decode
_read_event = msgspec.json.Decoder(Event[msgspec.Raw]).decode
read_bookmark = msgspec.json.Decoder(Bookmark).decode
_read_identity = msgspec.json.Decoder(_Identity).decode
_read_status = msgspec.json.Decoder(Status).decode


def read_status(text: bytes | msgspec.Raw) -> Status | None:
    """Return the Status in an error's body; None when it is none."""
    try:
        status = _read_status(text)
    except msgspec.MsgspecError:
        return None
    return status if status.kind == "Status" else None


class Reader:
    """Reads events and the items of lists. With ``struct`` an object is one where it fits; else it stays bytes."""

    def __init__(self, struct: type | None = None) -> None:
        self._event = msgspec.json.Decoder(Event[struct]).decode if struct else None  # type: ignore[valid-type]
        self._item: Callable[[msgspec.Raw], Any] | None = msgspec.json.Decoder(struct).decode if struct else None

    def event(self, line: bytes) -> Event[Any]:
        """Return an event; the object of one that tells no change is bytes. Raises ``msgspec.MsgspecError``."""
        if self._event is not None:
            try:
                event: Event[Any] = self._event(line)
            except msgspec.ValidationError:
                pass
            else:
                if event.type in CHANGED:
                    return event
        return _read_event(line)

    def item(self, raw: msgspec.Raw) -> Item:
        """Return an item of a list. Raises ``msgspec.MsgspecError``."""
        if self._item is not None:
            try:
                item: Named = self._item(raw)
            except msgspec.ValidationError:
                return raw
            return item
        return raw


def identity(item: Item) -> tuple[str, int]:
    """Return an object's ``NAMESPACE/NAME`` and the number of its version, -1 for one that is no number.

    Raises ``msgspec.MsgspecError`` for what is no object. Versions are compared as numbers (KEP-5504).
    """
    meta = _read_identity(item).metadata if isinstance(item, msgspec.Raw) else item.metadata
    return f"{meta.namespace}/{meta.name}", number(meta.resource_version)


def number(version: str) -> int:
    """Return a resourceVersion as a number; -1 for one that is none."""
    return int(version) if version.isascii() and version.isdigit() else -1


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, their ends maybe still there; empty lines are none."""
        if not self._rest and data.find(b"\n") == len(data) - 1 > 0:
            return [data]  # one line, as servers send them; its end is white space to JSON
        if b"\n" not in data:
            self._rest += data
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line for line in whole if line]

    @property
    def partial(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)
