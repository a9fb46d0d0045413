"""The wires of a node's pods, and word of every one that comes or goes.

Whoever makes a pod's wire for us marks its host side with ``ebpfnet pod=NAMESPACE/NAME mac=MAC`` when all else is in
place (``ip link set DEV alias …``, ``IFLA_IFALIAS``): the mark lives and dies with the interface, and ``ip link``
shows it. Another CNI plugin's wires are found by the names of their host side, and known by the addresses behind them.
"""

from __future__ import annotations

import fnmatch
import re
import socket
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from typing import NamedTuple

from pyroute2 import IPRoute

from ebpfnet.abi import IPAddress, Wire
from ebpfnet.datapath.links import Link, behind, links
from ebpfnet.datapath.netlink import Changes, Reader
from ebpfnet.exits import NotRunning

ALIAS = re.compile(r"ebpfnet pod=(\S+/\S+) mac=((?:[0-9a-f]{2}:){5}[0-9a-f]{2})")
OURS, ROUTED = 0, 1
SEGMENT_MAX = 0xFFFF
KINDS = {"veth", "netkit"}  # what has an end in another namespace that a packet can be handed to
WAKE_S = 0.5
LOOK_AGAIN_S = 1.0  # for addresses that no event tells of: neighbours and routes change all the time


class Interface(NamedTuple):
    """A pod's host-side interface: ``pod`` when it is marked, else the addresses behind it."""

    name: str
    pod: str
    wire: Wire
    addresses: tuple[IPAddress, ...] = ()


def alias(pod: str, mac: str) -> str:
    """Return the mark of a pod's wire; ``pod`` is NAMESPACE/NAME, ``mac`` the pod's end."""
    return f"ebpfnet pod={pod} mac={mac}"


def find(names: Iterable[str]) -> list[int]:
    """Return the indexes of interfaces by name, without a name those of the default routes.

    Raises ``NotRunning`` for one that is not there.
    """
    names = list(names)
    with IPRoute() as ip:
        if not names:
            routes = [*ip.get_default_routes(family=socket.AF_INET), *ip.get_default_routes(family=socket.AF_INET6)]
            indexes = dict.fromkeys(route.get_attr("RTA_OIF") for route in routes if route.get_attr("RTA_OIF"))
            if not indexes:
                raise NotRunning("there is no default route: name the interface to the other nodes with --uplink")
            return list(indexes)
        found = [(name, ip.link_lookup(ifname=name)) for name in names]
    for name, indexes in found:
        if not indexes:
            raise NotRunning(f"--uplink {name}: no such interface")
    return [indexes[0] for _, indexes in found]


class Chosen(NamedTuple):
    """Which interfaces, beside marked ones, are pods': name patterns, and what is none of them (by number)."""

    patterns: Sequence[str] = ()
    never: Container[int] = ()

    def has(self, link: Link) -> bool:
        """Say whether an interface of another plugin is a pod's."""
        if link.kind not in KINDS or link.namespace is None or link.ifindex in self.never:
            return False
        return any(fnmatch.fnmatchcase(link.name, pattern) for pattern in self.patterns)


def pod_interfaces(chosen: Chosen = Chosen()) -> list[Interface]:  # noqa: B008  # a constant
    """Return every pod's interface in this network namespace."""
    with Reader() as reader:
        return _look(reader, chosen)


def _look(reader: Reader, chosen: Chosen) -> list[Interface]:
    found = []
    there = links(reader)
    bridges = {link.ifindex for link in there if link.kind == "bridge"}
    for link in there:
        match = ALIAS.fullmatch(link.alias)
        if match:
            wire = Wire(link.ifindex, bytes.fromhex(match[2].replace(":", "")), OURS)
            found.append(Interface(link.name, match[1], wire))
        elif chosen.has(link):
            mac, addresses = behind(reader, link)
            bridged = link.master in bridges and link.master <= SEGMENT_MAX and any(mac)
            wire = Wire(link.ifindex, mac, link.master if bridged else ROUTED)
            found.append(Interface(link.name, "", wire, addresses))
    return found


def follow(
    deliver: Callable[[list[Interface]], None],
    stop: threading.Event,
    chosen: Chosen = Chosen(),  # noqa: B008  # a constant
    buffer_bytes: int | None = None,
) -> None:
    """Deliver all pods' interfaces now and after every change, until ``stop`` is set.

    Events only wake: the list is read anew each time, so a lost event (ENOBUFS) costs nothing but itself. An
    interface with nothing known behind it is looked at once a second too.
    """
    with Changes(buffer_bytes) as changes, Reader() as reader:
        last: list[Interface] | None = None
        while not stop.is_set():
            now = _look(reader, chosen)
            if now != last:
                deliver(now)
                last = now
            waits = 0.0
            blank = any(not each.pod and not each.addresses for each in now)
            while not stop.is_set() and not changes.wait(WAKE_S):
                waits += WAKE_S
                if blank and waits >= LOOK_AGAIN_S:
                    break
