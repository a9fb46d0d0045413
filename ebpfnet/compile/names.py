"""Names for people, as long as a table has room for them."""

from __future__ import annotations

from ebpfnet import abi

_MORE = "…"


def shown(text: str) -> str:
    """Return a name as ``names`` holds it: one that is too long loses its end. Ids are made of the whole name."""
    raw = text.encode()
    if len(raw) < abi.NAME_SIZE:
        return text
    return raw[: abi.NAME_SIZE - 1 - len(_MORE.encode())].decode(errors="ignore") + _MORE
