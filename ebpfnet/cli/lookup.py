"""Names for what the tables hold as numbers; read from the tables themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from ebpfnet import abi
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps.dump import host_port

_LOCAL = "#local"


class NoSuchName(EbpfnetError):
    """A service or pod that was asked for is not in the tables."""


def full_name(text: str) -> str:
    """Return NAMESPACE/NAME; a bare name is in ``default``."""
    return text if "/" in text else f"default/{text}"


def without_port(service: str) -> str:
    """Return NAMESPACE/NAME of NAMESPACE/NAME:PORT."""
    return service.rsplit(":", 1)[0]


def without_policy(name: str) -> str:
    """Return NAMESPACE/NAME:PORT of the name of an endpoint set."""
    return name.removesuffix(_LOCAL)


def is_local(name: str) -> bool:
    """Tell whether an endpoint set, by its name, is the one of traffic policy Local."""
    return name.endswith(_LOCAL)


def anywhere(address: bytes) -> bytes:
    """Return 0.0.0.0 or ::, as an address is: where ``services`` has NodePorts."""
    return abi.V4_PREFIX + bytes(4) if address.startswith(abi.V4_PREFIX) else bytes(16)


def refuse_unknown(kind: str, text: str, known: Iterable[str]) -> None:
    """Raise ``NoSuchName`` for a name that is not known, with those that it may have meant."""
    names = set(known)
    wanted = full_name(text)
    if wanted in names:
        return
    like_it = (name for name in names if (":" in name) == (":" in text))
    raise NoSuchName(f"no {kind} {wanted!r} in the tables{near(text, like_it)}")


def near(text: str, names: Iterable[str]) -> str:
    """Return what to say of a name that is not known: which of those that are may be meant."""
    import difflib

    bare = {name: name.rpartition("/")[2] for name in names}
    alike = difflib.get_close_matches(text.rpartition("/")[2], set(bare.values()), n=3)
    found = sorted(name for name in bare if name.startswith(f"{text}/") or bare[name] in alike)[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


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
    def _services(self) -> tuple[dict[bytes, abi.Service], dict[bytes, int]]:
        entries, marks = {}, {}
        for key, value in self.tables["services"].items():
            entry = abi.Service.unpack(value)
            if any(key[16:]):
                entries[key] = entry
            else:
                marks[key[:16]] = entry.marks
        return entries, marks

    @property
    def entries(self) -> dict[bytes, abi.Service]:
        """What is served, by address and port (the key's bytes)."""
        return self._services[0]

    @property
    def marks(self) -> dict[bytes, int]:
        """What an address is."""
        return self._services[1]

    @cached_property
    def frontends(self) -> dict[bytes, str]:
        """NAMESPACE/NAME:PORT of a service by address and port (the key's bytes)."""
        return {key: self.service(entry.inside) for key, entry in self.entries.items()}

    @property
    def services(self) -> set[str]:
        """NAMESPACE/NAME of every service, and of its ports with :PORT."""
        labels = set(self.frontends.values())
        return labels | {without_port(label) for label in labels}

    def name(self, identity: int) -> str:
        """Return the text of an id; an id without one shows as hexadecimal."""
        return self.names.get(identity, f"#{identity:016x}")

    def service(self, identity: int) -> str:
        """Return NAMESPACE/NAME:PORT of an endpoint set's id."""
        return without_policy(self.name(identity))

    def end(self, address: bytes, port: int, protocol: int) -> str:
        """Return one end of a connection with the pod's or service's name beside its address."""
        plain = host_port(address, port)
        known = self.pods.get(address) or self.at(address, port, protocol)
        return f"{plain} ({known})" if known else plain

    def at(self, address: bytes, port: int, protocol: int) -> str:
        """Return the service that is served at an address and port, empty for none."""
        found = self.frontends.get(abi.Frontend(address, port, protocol).pack(), "")
        if not found and self.marks.get(address, 0) & abi.Mark.NODEPORTS:
            found = self.frontends.get(abi.Frontend(anywhere(address), port, protocol).pack(), "")
        return found

    def tuple(self, key: abi.Tuple) -> str:
        """Return a connection in one line."""
        ends = [
            self.end(key.source, key.source_port, key.protocol),
            self.end(key.destination, key.destination_port, key.protocol),
        ]
        return " -> ".join(ends)
