"""What test runs find in a network namespace that is empty but for them: interfaces of given numbers, and a way out.

The programs ask the kernel's routing table about packets that come in at an interface (``bpf_fib_lookup``,
net/core/filter.c), so there must be one, and it must forward.
"""

from __future__ import annotations

import socket
from pathlib import Path

from pyroute2 import IPRoute

_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/forwarding")


def ensure(ifindex: int, uplink: int) -> None:
    """See to it that the calling thread's network has an interface of this number, and one to leave by."""
    if _is_there(ifindex):
        return
    with IPRoute() as ip:
        if not _is_there(uplink):
            _make_uplink(ip, uplink)
        if ifindex != uplink:
            ip.link("add", ifname=f"stage{ifindex}", kind="bridge", index=ifindex)


def _is_there(ifindex: int) -> bool:
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def _make_uplink(ip: IPRoute, uplink: int) -> None:
    for setting in _FORWARDING:
        place = Path("/proc/sys/net", setting)
        if place.exists():  # a kernel without IPv6 has none of its
            place.write_text("1")
    ip.link("add", ifname="stage", kind="veth", index=uplink, peer="stage-peer")
    for name in ("stage-peer", "stage"):
        ip.link("set", index=socket.if_nametoindex(name), state="up")
    for family in (socket.AF_INET, socket.AF_INET6):
        ip.route("add", family=family, dst="default", oif=uplink)
