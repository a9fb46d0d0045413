"""Names for what the tables hold as numbers; read from the tables themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from ebpfnet import abi
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps.dump import host_port


class NoSuchName(EbpfnetError):
    """A service or pod that was asked for is not in the tables."""


def full_name(text: str) -> str:
    """Return NAMESPACE/NAME; a bare name is in ``default``."""
    return text if "/" in text else f"default/{text}"


def without_port(service: str) -> str:
    """Return NAMESPACE/NAME of NAMESPACE/NAME:PORT."""
    return service.rsplit(":", 1)[0]


def refuse_unknown(kind: str, text: str, known: Iterable[str]) -> None:
    """Raise ``NoSuchName`` for a name that is not known, with those that it may have meant."""
    names = set(known)
    wanted = full_name(text)
    if wanted in names:
        return
    import difflib

    bare = {name: name.partition("/")[2] for name in names if (":" in name) == (":" in text)}
    alike = difflib.get_close_matches(wanted.partition("/")[2], set(bare.values()), n=3)
    near = sorted(name for name in bare if name.startswith(f"{text}/") or bare[name] in alike)[:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NoSuchName(f"no {kind} {wanted!r} in the tables{hint}")


class Lookup:
    """One node's names."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.tables = tables

    @cached_property
    def names(self) -> dict[int, str]:
        """Text by id."""
        table = self.tables["names"]
        return {int.from_bytes(key, "little"): abi.unpack_name(value) for key, value in table.items()}

    @cached_property
    def pods(self) -> dict[bytes, str]:
        """Pod of this node by address."""
        found = {}
        for key, value in self.tables["pods"].items():
            found[key] = self.names.get(abi.Pod.unpack(value).id, "?")
        return found

    @cached_property
    def frontends(self) -> dict[bytes, str]:
        """Service by address and port (the key's bytes)."""
        return {key: self.name(abi.Service.unpack(value).id) for key, value in self.tables["services"].items()}

    @property
    def services(self) -> set[str]:
        """NAMESPACE/NAME of every service, and of its ports with :PORT."""
        labels = set(self.frontends.values())
        return labels | {without_port(label) for label in labels}

    def name(self, identity: int) -> str:
        """Return the text of an id; an id without one shows as hexadecimal."""
        return self.names.get(identity, f"#{identity:016x}")

    def end(self, address: bytes, port: int, protocol: int) -> str:
        """Return one end of a connection with the pod's or service's name beside its address."""
        plain = host_port(address, port)
        known = self.pods.get(address) or self.frontends.get(abi.Frontend(address, port, protocol).pack())
        return f"{plain} ({known})" if known else plain

    def tuple(self, key: abi.Tuple) -> str:
        """Return a connection in one line."""
        ends = [
            self.end(key.source, key.source_port, key.protocol),
            self.end(key.destination, key.destination_port, key.protocol),
        ]
        return " -> ".join(ends)
