"""Names in manifests that are nearly those that are read: kinds and fields that would be passed over in silence.

The API server refuses or drops what it does not know; a file of manifests has nobody to do so. A name counts as
misspelt when it differs by case alone or by little, and is none of the API's own.
"""

from __future__ import annotations

import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

ALIKE = 0.8
GROUPS = {None, "", "discovery.k8s.io", "networking.k8s.io"}
# The API's own kinds and fields that look like some that are read (tests compare with the official client's).
KINDS = {"APIService", "ServiceAccount", "PodTemplate", "Endpoints", "NetworkPolicyPeer"}
FIELDS = {
    "appProtocol",
    "containerStatuses",
    "deletionTimestamp",
    "creationTimestamp",
    "ephemeralContainerStatuses",
    "ephemeralContainers",
    "hostIP",
    "hostIPs",
    "hostPort",
    "initContainerStatuses",
    "initContainers",
    "podIP",
    "podIPs",
    "restartPolicyRules",
    "targetPort",
}


def meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return which of ``known`` a name was probably meant to be, None when it is a name of its own."""
    for each in known:
        if each.lower() == name.lower():
            return each
    found = difflib.get_close_matches(name, known, n=1, cutoff=ALIKE)
    return found[0] if found else None


@functools.cache
def _field(struct: type, name: str) -> str | None:
    names = tuple(field.encode_name for field in msgspec.structs.fields(struct))
    return None if name in FIELDS else meant(name, names)


@functools.cache
def _shape(struct: type) -> tuple[frozenset[str], tuple[tuple[str, type, bool], ...]]:
    """Return a struct's field names, and those of its fields that hold structs: (name, struct, whether a list)."""
    inner = []
    for field in msgspec.structs.fields(struct):
        for part in typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,):
            many = typing.get_origin(part) is list
            kind = typing.get_args(part)[0] if many else part
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and "annotations" not in field.encode_name:
                inner.append((field.encode_name, kind, many))
    return frozenset(field.encode_name for field in msgspec.structs.fields(struct)), tuple(inner)


def misspelt(item: Mapping[str, Any], struct: type, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path of a field, what it was probably meant to be)."""
    names, inner = _shape(struct)
    for name in item.keys() - names:
        found = _field(struct, name) if isinstance(name, str) else None
        if found and found not in item:
            yield f"{path}{name}", found
    for name, kind, many in inner:
        value = item.get(name)
        if many and isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, Mapping):
                    yield from misspelt(each, kind, f"{path}{name}[{index}].")
        elif not many and isinstance(value, Mapping):
            yield from misspelt(value, kind, f"{path}{name}.")
