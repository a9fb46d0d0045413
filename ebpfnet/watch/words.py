"""What a decoder found wrong, in the words of who wrote the text: msgspec's are those of its types."""

from __future__ import annotations

import re

_TYPES = {
    "str": "a text",
    "int": "a number",
    "float": "a fraction",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_BOUNDS = {">=": "at least", "<=": "at most"}


def explain(message: str) -> tuple[str, str]:
    """Return the field's path and what is wrong of "Expected `int`, got `str` - at `$.spec.ports[0].port`"."""
    reason, _, where = message.partition(" - at ")
    path = where[where.rfind("`$") + 2 :].rstrip("`") if "`$" in where else ""
    of_a_key = "of a key: " if where.startswith("`key`") else ""
    if field := re.fullmatch(r"Object (missing required|contains unknown) field `(.+)`", reason):
        return f"{path}.{field[2]}".lstrip("."), "missing" if "missing" in field[1] else "there is no such field"
    return path.lstrip("."), of_a_key + _plain(reason)


def type_name(value: object) -> str:
    """Return what a value is, for somebody who wrote JSON or YAML."""
    names = {dict: "object", list: "array", type(None): "null"}
    kind = names.get(type(value), type(value).__name__)
    return _TYPES.get(kind, kind)


def _plain(reason: str) -> str:
    if found := re.fullmatch(r"Expected `(.+)`, got `(.+)`", reason):
        wanted = dict.fromkeys(_TYPES.get(each, each) for each in found[1].split(" | ") if each != "null")
        return f"{' or '.join(wanted)} is expected, not {_TYPES.get(found[2], found[2])}"
    if found := re.fullmatch(r"Expected `(int|float)` (>=|<=) (\S+)", reason):
        return f"a number of {_BOUNDS[found[2]]} {found[3]} is expected"
    return reason
