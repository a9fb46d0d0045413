"""Byte templates: a manifest with fields ``@name@`` becomes an object's JSON without being encoded again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tests.apiserver.store import Parts

Manifest = dict[str, Any]
WHEN = "2026-01-01T00:00:00Z"


class Template:
    """A manifest with fields, cut into the parts of a `store.Item` at some of them.

    ``@@name@@`` stands for JSON, ``@name@`` for a piece of a string. What is filled in must not need escaping.
    """

    def __init__(self, manifest: Manifest, *cuts: str) -> None:
        body = {key: value for key, value in manifest.items() if key not in {"kind", "apiVersion"}}
        text = msgspec.json.encode(body)[1:].replace(b"%", b"%%").replace(b'"@@', b"@").replace(b'@@"', b"@")
        self.formats: list[bytes] = []
        for cut in cuts:
            before, found, text = text.partition(b"@%b@" % cut.encode())
            assert found, cut
            self.formats.append(_fields(before))
        self.formats.append(_fields(text))

    def fill(self, values: Mapping[bytes, bytes]) -> Parts:
        """Return the parts with the fields' values in."""
        return tuple(each % values for each in self.formats)


def _fields(text: bytes) -> bytes:
    constants = text.split(b"@")
    return b"".join(b"%%(%b)b" % part if index % 2 else part for index, part in enumerate(constants))


def fields(*names: str) -> dict[str, Any]:
    """Return managed fields by name."""
    return {name if name == "." else f"f:{name}": {} for name in names}


def managed(who: str, owned: dict[str, Any], sub: str = "") -> dict[str, Any]:
    """Return an entry of ``managedFields``."""
    entry = {"manager": who, "operation": "Update", "apiVersion": "v1", "time": WHEN, "fieldsType": "FieldsV1"}
    return {**entry, "fieldsV1": owned} | ({"subresource": sub} if sub else {})


def metadata(*, namespaced: bool = True, **more: Any) -> dict[str, Any]:
    """Return an object's metadata: name, namespace and uid are fields."""
    place = {"namespace": "@namespace@"} if namespaced else {}
    return {"name": "@name@", **place, "uid": "@uid@", "resourceVersion": "@rv@", "creationTimestamp": WHEN, **more}


def owner(kind: str, api_version: str, name: str, uid: str) -> list[dict[str, Any]]:
    """Return ``ownerReferences``."""
    flags = {"controller": True, "blockOwnerDeletion": True}
    return [{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, **flags}]
