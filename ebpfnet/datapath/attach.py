"""Programs on interfaces: tc ``clsact`` with direct-action filters, replaced in one step and never detached first.

Only filters whose name starts with ours are touched; with another tool's filters there we take the next free priority.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ebpfnet.datapath.load import Program
from ebpfnet.exits import EbpfnetError

PREFIX = "ebpfnet/"
INGRESS, EGRESS = "ffff:fff2", "ffff:fff3"
DIRECTIONS = {
    "from_pod": INGRESS,
    "from_pod_beside": INGRESS,
    "from_network": INGRESS,
    "to_pod": EGRESS,
    "to_pod_beside": EGRESS,
    "to_network": EGRESS,
    "to_network_beside": EGRESS,
    "from_host": EGRESS,
}
ETH_P_ALL = 3
HANDLE = 0xEB


class AttachFailed(EbpfnetError):
    """The kernel refused a filter, or the interface is gone."""


class Filter(NamedTuple):
    """A bpf filter on an interface."""

    name: str
    priority: int
    handle: int


def _parent(text: str) -> int:
    major, minor = text.split(":")
    return int(major, 16) << 16 | int(minor, 16)


def filters(ip: IPRoute, ifindex: int, direction: str) -> list[Filter]:
    """Return every filter of an interface's direction, other tools' too (their name may be empty)."""
    found: dict[tuple[int, int], Filter] = {}
    try:
        messages: list[Any] = list(ip.get_filters(index=ifindex, parent=_parent(direction)))
    except NetlinkError as error:
        if error.code in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:  # no clsact, or no interface
            return []
        raise
    for message in messages:
        options = message.get_attr("TCA_OPTIONS")
        name = options.get_attr("TCA_BPF_NAME") if message.get_attr("TCA_KIND") == "bpf" and options else ""
        priority, handle = message["info"] >> 16, message["handle"]
        if not handle:  # the head of a priority, not a filter
            continue
        found[priority, handle] = Filter(name or "", priority, handle)
    return list(found.values())


def _place(ip: IPRoute, ifindex: int, direction: str, name: str) -> tuple[int, int]:
    """Return priority and handle of our filter, or of where to put it."""
    there = filters(ip, ifindex, direction)
    plain = name.removesuffix("_beside")
    for each in there:
        if each.name in {plain, f"{plain}_beside"}:
            return each.priority, each.handle
    taken = {each.priority for each in there}
    return next(number for number in range(1, 65535) if number not in taken), HANDLE


def attach(ifindex: int, programs: Iterable[Program]) -> None:
    """Put programs on their hooks of an interface, each in place of its former version; raises ``AttachFailed``."""
    with IPRoute() as ip:
        try:
            _add_clsact(ip, ifindex)
            for program in programs:
                _replace(ip, ifindex, program)
        except NetlinkError as error:
            raise AttachFailed(str(error)) from error


def _add_clsact(ip: IPRoute, ifindex: int) -> None:
    try:
        ip.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        # An "ingress" qdisc has the same handle and takes filters for "egress", to run them on ingress.
        if not any(each.get_attr("TCA_KIND") == "clsact" for each in ip.get_qdiscs(index=ifindex)):
            raise AttachFailed("another tool's ingress qdisc is there; only clsact can be shared") from error


def _replace(ip: IPRoute, ifindex: int, program: Program) -> None:
    direction = DIRECTIONS[program.name]
    priority, handle = _place(ip, ifindex, direction, PREFIX + program.name)
    where = {"handle": handle, "prio": priority, "parent": direction, "protocol": ETH_P_ALL}
    ip.tc("replace-filter", "bpf", ifindex, fd=program.fd, name=PREFIX + program.name, direct_action=True, **where)


def attached(ip: IPRoute, ifindex: int) -> list[str]:
    """Return the names of our programs on an interface."""
    names = [each.name for direction in (INGRESS, EGRESS) for each in filters(ip, ifindex, direction)]
    return sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


def detach(ip: IPRoute, ifindex: int) -> int:
    """Remove our filters from an interface, and its clsact when nobody else uses it; returns how many there were."""
    ours = others = 0
    for direction in (INGRESS, EGRESS):
        for each in filters(ip, ifindex, direction):
            if not each.name.startswith(PREFIX):
                others += 1
                continue
            ours += 1
            where = {"handle": each.handle, "prio": each.priority, "parent": direction, "protocol": ETH_P_ALL}
            ip.tc("del-filter", "bpf", ifindex, **where)
    if ours and not others:
        ip.tc("del", "clsact", ifindex)
    return ours


def remove_elsewhere(keep: Container[int], programs: Iterable[str]) -> list[str]:
    """Remove our filters from interfaces with these programs, but ``keep``; returns the names of those interfaces."""
    wanted, found = sorted(programs), []
    with IPRoute() as ip:
        for link in ip.get_links():
            if link["index"] not in keep and attached(ip, link["index"]) == wanted:
                detach(ip, link["index"])
                found.append(link.get_attr("IFLA_IFNAME"))
    return found


def everywhere(*, remove: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the interfaces of this network namespace with our programs on them, which go when ``remove``."""
    with IPRoute() as ip:
        for link in ip.get_links():
            names = attached(ip, link["index"])
            if names:
                if remove:
                    detach(ip, link["index"])
                yield link.get_attr("IFLA_IFNAME"), names
