"""Pods as policies see them, of all nodes: addresses by namespace, labels and named ports.

A policy can't tell pods apart that share these, so they are one group: a cluster of 150,000 pods has some ten thousand.
A pod costs its name and its packed addresses, in plain strings and bytes that the garbage collector never looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ebpfnet.model.facts import IPAddress, Peer, Pod, PodPort, Ref
from ebpfnet.model.labels import Labels

ADDRESS = 16
V4_PREFIX = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 2.5.5.2


def pack(address: IPAddress) -> bytes:
    """Return an address as 16 bytes, IPv4 mapped."""
    return address.packed if address.version == 6 else V4_PREFIX + address.packed


def named_ports(ports: Iterable[PodPort]) -> tuple[PodPort, ...]:
    """Return those that have a name, sorted, each once."""
    return tuple(sorted({port for port in ports if port.name}, key=lambda port: (port.name, port.protocol, port.port)))


def as_peer(pod: Pod) -> Peer:
    """Return what policies see of a pod that is known in full."""
    addresses = b"" if pod.host_network else b"".join(map(pack, pod.addresses))
    return Peer(pod.ref, pod.labels, addresses, named_ports(pod.ports) if addresses else ())


class Likeness(NamedTuple):
    """Who shares all of this is alike to every policy."""

    namespace: str
    labels: Labels
    ports: tuple[PodPort, ...]


class Home(NamedTuple):
    """Where a pod is: its group's likeness, and its packed addresses."""

    likeness: Likeness
    addresses: bytes

    def each(self) -> list[bytes]:
        """Return the addresses one by one."""
        return split(self.addresses)


def split(addresses: bytes) -> list[bytes]:
    """Cut packed addresses into one for each."""
    if len(addresses) == ADDRESS:
        return [addresses]
    return [addresses[at : at + ADDRESS] for at in range(0, len(addresses), ADDRESS)]


class Group:
    """Pods that are alike: their addresses, by pod."""

    __slots__ = ("addresses", "likeness")

    def __init__(self, likeness: Likeness) -> None:
        self.likeness = likeness
        self.addresses: dict[str, bytes] = {}


class Peers:
    """All groups. Pods are told apart by kind, namespace and name; one without an address is not kept."""

    def __init__(self) -> None:
        self._groups: dict[Likeness, Group] = {}
        self._homes: dict[str, Group] = {}

    @property
    def groups(self) -> Mapping[Likeness, Group]:
        """The groups that have pods."""
        return self._groups

    def __len__(self) -> int:
        """How many pods are kept."""
        return len(self._homes)

    def find(self, ref: Ref) -> Home | None:
        """Return where a pod is; None: it has no address."""
        key = str(ref)
        group = self._homes.get(key)
        return Home(group.likeness, group.addresses[key]) if group else None

    def set(self, peer: Peer) -> bool:
        """Take a pod in; returns whether anything changed."""
        if not peer.addresses:
            return self.drop(peer.ref)
        key, likeness = str(peer.ref), Likeness(peer.ref.namespace, peer.labels, peer.ports)
        home = self._homes.get(key)
        if home is not None:
            if home.likeness == likeness:
                changed = home.addresses[key] != peer.addresses
                home.addresses[key] = peer.addresses
                return changed
            self._leave(key, home)
        group = self._groups.get(likeness)
        if group is None:
            group = self._groups[likeness] = Group(likeness)
        group.addresses[key] = peer.addresses
        self._homes[key] = group
        return True

    def drop(self, ref: Ref) -> bool:
        """Take a pod out; returns whether it was there."""
        key = str(ref)
        home = self._homes.pop(key, None)
        if home is None:
            return False
        self._leave(key, home)
        return True

    def _leave(self, key: str, home: Group) -> None:
        del home.addresses[key]
        if not home.addresses:
            del self._groups[home.likeness]
