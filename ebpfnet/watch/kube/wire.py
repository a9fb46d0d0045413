"""The envelopes of the API: pages of a list, events of a watch, and the Status of an error.

An object stays bytes (``msgspec.Raw``) until its kind's decoder reads the few fields that are used. An event's ``type``
is read before its object: the object of an ERROR has no name, that of a BOOKMARK has null for its lists.
Source: k8s.io/apimachinery, ``meta/v1`` ``ListMeta``, ``WatchEvent``, ``Status``.
"""

from __future__ import annotations

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


class Event(_Struct):
    """``WatchEvent``."""

    type: str
    object: msgspec.Raw


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


read_page = msgspec.json.Decoder(Page).decode
read_event = msgspec.json.Decoder(Event).decode
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


def identity(raw: bytes | msgspec.Raw) -> tuple[str, int]:
    """Return an object's ``NAMESPACE/NAME`` and the number of its version, -1 for one that is no number.

    Raises ``msgspec.MsgspecError`` for what is no object. Versions are compared as numbers (KEP-5504).
    """
    meta = _read_identity(raw).metadata
    return f"{meta.namespace}/{meta.name}", number(meta.resource_version)


def number(version: str) -> int:
    """Return a resourceVersion as a number; -1 for one that is none."""
    return int(version) if version.isascii() and version.isdigit() else -1


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends; empty lines are none."""
        if b"\n" not in data:
            self._rest += data
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line for line in whole if line]

    @property
    def partial(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)
