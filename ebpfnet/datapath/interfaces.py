"""The wires of a node's pods, told by their alias, and word of every interface that comes or goes.

Whoever makes a pod's wire marks its host side with ``ebpfnet pod=NAMESPACE/NAME mac=MAC`` when all else is in place
(``ip link set DEV alias …``, ``IFLA_IFALIAS``): the mark lives and dies with the interface, and ``ip link`` shows it.
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyroute2 import IPRoute

from ebpfnet.abi import Wire
from ebpfnet.exits import NotRunning

ALIAS = re.compile(r"ebpfnet pod=(\S+/\S+) mac=((?:[0-9a-f]{2}:){5}[0-9a-f]{2})")
RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
NETLINK_ROUTE = 0


class Interface(NamedTuple):
    """A pod's host-side interface."""

    name: str
    pod: str
    wire: Wire


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


def pod_interfaces() -> list[Interface]:
    """Return every marked interface of this network namespace."""
    with IPRoute() as ip:
        return _marked(ip)


def _marked(ip: IPRoute) -> list[Interface]:
    found = []
    for link in ip.get_links():
        match = ALIAS.fullmatch(link.get_attr("IFLA_IFALIAS") or "")
        if match:
            wire = Wire(link["index"], bytes.fromhex(match[2].replace(":", "")))
            found.append(Interface(link.get_attr("IFLA_IFNAME"), match[1], wire))
    return found


def follow(deliver: Callable[[list[Interface]], None], stop: threading.Event, wake_s: float = 0.5) -> None:
    """Deliver all marked interfaces now and after every change of a link, until ``stop`` is set.

    Events only wake: the list is read anew each time, so a lost event (ENOBUFS) costs nothing but itself.
    """
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    with events, IPRoute() as ip:
        events.bind((0, RTMGRP_LINK))
        events.setblocking(False)
        last: list[Interface] | None = None
        while not stop.is_set():
            now = _marked(ip)
            if now != last:
                deliver(now)
                last = now
            if select.select([events], [], [], wake_s)[0]:
                _drain(events)


def _drain(events: socket.socket) -> None:
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: some were lost, the list is read anyway
            continue
