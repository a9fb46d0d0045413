"""Interfaces, addresses and routes of a lab, made with netlink.

The uplink network is a bridge in a namespace of its own; each node has a veth into it, called ``uplink``, and so has
the outside. Nodes and the outside know each other by host routes, so their addresses need no common prefix; the outside
is the nodes' default gateway. A pod has /32 and /128 addresses and one gateway,
169.254.1.1 or fe80::1, whose MAC is set for good: a pod asks nobody for anything, and no address of it is ever
announced. Its end of the wire stays down until the node's agent serves the other one, so nothing passes before its
policies are there. Checksum offload stays on, as on real machines.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ebpfnet.lab import namespace
from ebpfnet.lab.topology import UPLINK, NodePlan, OutsidePlan, Plan, PodPlan, Route, outside_routes, routes

POD_INTERFACE = "eth0"
GATEWAYS = {4: "169.254.1.1", 6: "fe80::1"}

_BRIDGE = "bridge"
_ETHERNET_MTU = 1500
_SCOPE_LINK = 253
_NUD_PERMANENT = 0x80
_IFA_F_NODAD = 0x02
UNREACHABLE_METRIC = 2**32 - 2
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_SETTINGS_EVERYWHERE = {
    "ipv4/conf/{}/rp_filter": "0",
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_redirects": "0",
    "ipv6/conf/{}/accept_dad": "0",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/accept_redirects": "0",
}
_SETTINGS_FORWARDING = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    # A lab is for looking at: every probe of a traceroute gets its answer.
    "ipv4/icmp_ratelimit": "0",
    "ipv6/icmp/ratelimit": "0",
}


def build_uplink(plan: Plan, mtu: int) -> None:
    """Make the network between the nodes."""
    namespace.create(plan.uplink_netns)

    def build(ip: IPRoute) -> None:
        _settings({})
        ip.link("add", ifname=_BRIDGE, kind="bridge", br_mcast_snooping=0, br_forward_delay=0)
        ip.link("set", index=_index(ip, _BRIDGE), mtu=mtu, state="up")

    _within(plan.uplink_netns, build)


def build_node(plan: Plan, node: NodePlan | OutsidePlan, mtu: int) -> None:
    """Make a node's namespace, or the outside's, and plug it into the uplink network."""
    namespace.create(node.netns)

    def prepare(ip: IPRoute) -> None:
        _settings(_SETTINGS_FORWARDING)
        ip.link("set", index=_index(ip, "lo"), state="up")

    def plug(ip: IPRoute) -> None:
        peer = {"ifname": UPLINK, "net_ns_fd": node.netns, "address": node.mac, "mtu": mtu}
        ip.link("add", ifname=node.bridge_port, kind="veth", mtu=mtu, peer=peer)
        ip.link("set", index=_index(ip, node.bridge_port), master=_index(ip, _BRIDGE), state="up")

    def address(ip: IPRoute) -> None:
        uplink = _index(ip, UPLINK)
        ip.link("set", index=uplink, state="up")
        # Of several IPv6 addresses the last is the one that is used by itself, of IPv4's the first.
        ipv6 = [each for each in node.addresses if ":" in each]
        for each in (*(each for each in node.addresses if each not in ipv6), *reversed(ipv6)):
            _add_address(ip, uplink, each)

    _within(node.netns, prepare)
    _within(plan.uplink_netns, plug)
    _within(node.netns, address)


def set_routes(plan: Plan, node: NodePlan, before: Plan) -> None:
    """Give a node its routes to the other nodes, their pods and the outside; take away those that ``before`` had.

    Where its own pods' addresses come from, what no pod has is refused here: the outside knows no way back.
    """
    routers = plan.outside.addresses if plan.outside else ()
    old_routers = before.outside.addresses if before.outside else ()
    peers = {address for other in plan.nodes if other.name != node.name for address in other.addresses}
    old_peers = {address for other in before.nodes if other.name != node.name for address in other.addresses}
    want = set(routes(plan, node))
    old = set(routes(before, node)) if before.node(node.name) == node else set()

    def change(ip: IPRoute) -> None:
        uplink = _index(ip, UPLINK)
        _change_routes(ip, uplink, (old_peers | {*old_routers}, old), (peers | {*routers}, want))
        for block in node.pod_cidrs:
            family = _FAMILY[ipaddress.ip_network(block).version]
            # The last choice: a plugin's bridge has a route of its own for the block.
            ip.route("replace", family=family, dst=block, type="unreachable", priority=UNREACHABLE_METRIC)
        for version in (4, 6):
            gateway = next((each for each in routers if ipaddress.ip_address(each).version == version), None)
            if gateway and any(ipaddress.ip_address(each).version == version for each in node.addresses):
                ip.route("replace", family=_FAMILY[version], dst="default", gateway=gateway, oif=uplink)

    _within(node.netns, change)


def set_outside_routes(plan: Plan, before: Plan) -> None:
    """Give the outside its routes to nodes and to what services have for it; take away those that ``before`` had."""
    if plan.outside is None:
        return
    old = before if before.outside == plan.outside else Plan(before.lab, before.uplink_netns)
    peers, old_peers = ({address for node in each.nodes for address in node.addresses} for each in (plan, old))

    def change(ip: IPRoute) -> None:
        have, want = (old_peers, {*outside_routes(old)}), (peers, {*outside_routes(plan)})
        _change_routes(ip, _index(ip, UPLINK), have, want)

    _within(plan.outside.netns, change)


def _change_routes(
    ip: IPRoute, uplink: int, have: tuple[set[str], set[Route]], want: tuple[set[str], set[Route]]
) -> None:
    """Have other neighbours, and other routes through them; what goes goes first, a route before its gateway."""
    wanted = {each.destination for each in want[1]}
    for route in sorted(have[1] - want[1], key=str):
        if route.destination not in wanted:
            _remove_route(ip, route.destination, uplink)
    for peer in sorted(have[0] - want[0]):
        _remove_route(ip, peer, uplink)
    for peer in sorted(want[0]):
        _host_route(ip, uplink, peer)
    for route in sorted(want[1], key=str):
        _route_via(ip, uplink, route)


def build_pod(plan: Plan, pod: PodPlan) -> None:
    """Make a pod's namespace and its wire to the node, whose end in the pod is down until ``open_pod``.

    The alias comes last, when all else is in place: an agent serves what has one.
    """
    node = plan.node(pod.node)
    if pod.host_network or node is None:
        return
    namespace.create(pod.netns)

    def settle(_: IPRoute) -> None:
        _settings({})

    def plug(ip: IPRoute) -> None:
        peer = {"ifname": POD_INTERFACE, "net_ns_fd": pod.netns, "address": pod.mac, "mtu": _ETHERNET_MTU}
        name = pod.host_interface
        ip.link("add", ifname=name, kind="veth", address=pod.host_mac, mtu=_ETHERNET_MTU, peer=peer)
        _quiet(name)
        ip.link("set", index=_index(ip, name), state="up")

    def connect(ip: IPRoute) -> None:
        host = _index(ip, pod.host_interface)
        for address in pod.addresses:
            _neighbour(ip, host, address, pod.mac)
            _host_route(ip, host, address)
        ip.link("set", index=host, ifalias=pod.alias)

    _within(pod.netns, settle)
    _within(node.netns, plug)
    _within(pod.netns, lambda ip: _inside_pod(ip, pod))
    _within(node.netns, connect)


def open_pod(pod: PodPlan) -> None:
    """Bring a pod's end of its wire up, and give it its one gateway for each family; one that is open stays so."""
    if pod.host_network:
        return

    def open_up(ip: IPRoute) -> None:
        link = _index(ip, POD_INTERFACE)
        ip.link("set", index=link, state="up")
        for version in sorted({ipaddress.ip_address(address).version for address in pod.addresses}):
            gateway = GATEWAYS[version]
            _neighbour(ip, link, gateway, pod.host_mac)
            if version == 4:
                _host_route(ip, link, gateway)
            ip.route("replace", family=_FAMILY[version], dst="default", gateway=gateway, oif=link)

    _within(pod.netns, open_up)


def remove_pod(pod: PodPlan) -> None:
    """Take a pod's wire and namespace away; what is gone already is no error."""
    if pod.host_network:
        return
    _remove_link(pod.netns, POD_INTERFACE)
    namespace.remove(pod.netns)


def remove_node(node: NodePlan | OutsidePlan) -> None:
    """Take a node's uplink, or the outside's, and namespace away; what is gone already is no error."""
    _remove_link(node.netns, UPLINK)
    namespace.remove(node.netns)


def remove_uplink(plan: Plan) -> None:
    """Take the network between the nodes away; what is gone already is no error."""
    _remove_link(plan.uplink_netns, _BRIDGE)
    namespace.remove(plan.uplink_netns)


def _inside_pod(ip: IPRoute, pod: PodPlan) -> None:
    """Give the pod's end its addresses."""
    _quiet(POD_INTERFACE)
    link = _index(ip, POD_INTERFACE)
    ip.link("set", index=_index(ip, "lo"), state="up")
    for address in pod.addresses:
        _add_address(ip, link, address)


def _add_address(ip: IPRoute, link: int, address: str) -> None:
    parsed = ipaddress.ip_address(address)
    extra = {"flags": _IFA_F_NODAD} if parsed.version == 6 else {}
    arguments = {"address": address, "prefixlen": parsed.max_prefixlen, "family": _FAMILY[parsed.version], **extra}
    ip.addr("add", index=link, **arguments)


def _host_route(ip: IPRoute, link: int, address: str) -> None:
    parsed = ipaddress.ip_address(address)
    extra = {"scope": _SCOPE_LINK} if parsed.version == 4 else {}
    arguments = {"dst": f"{address}/{parsed.max_prefixlen}", "family": _FAMILY[parsed.version], **extra}
    ip.route("replace", oif=link, **arguments)


def _route_via(ip: IPRoute, link: int, route: Route) -> None:
    family = _FAMILY[ipaddress.ip_network(route.destination).version]
    ip.route("replace", family=family, dst=route.destination, gateway=route.via, oif=link)


def _remove_route(ip: IPRoute, destination: str, link: int) -> None:
    block = ipaddress.ip_network(destination)
    with _tolerating(errno.ESRCH):
        ip.route("del", family=_FAMILY[block.version], dst=str(block), oif=link)


def _neighbour(ip: IPRoute, link: int, address: str, mac: str) -> None:
    family = _FAMILY[ipaddress.ip_address(address).version]
    ip.neigh("replace", family=family, dst=address, lladdr=mac, ifindex=link, state=_NUD_PERMANENT)


def _remove_link(netns: str, interface: str) -> None:
    def remove(ip: IPRoute) -> None:
        for index in ip.link_lookup(ifname=interface):
            with _tolerating(errno.ENODEV):
                ip.link("del", index=index)

    # A file without a namespace behind it (a crash between the two steps) gives EINVAL.
    with contextlib.suppress(FileNotFoundError), _tolerating(errno.EINVAL):
        _within(netns, remove)


def _within(netns: str, function: Callable[[IPRoute], None]) -> None:
    def call() -> None:
        with IPRoute() as ip:
            function(ip)

    namespace.run(netns, call)


def _settings(more: dict[str, str]) -> None:
    """Write sysctls of the thread's namespace; before any interface is made, so that each starts with them."""
    for key, value in more.items():
        _write(key, value)
    for key, value in _SETTINGS_EVERYWHERE.items():
        for scope in ("all", "default"):
            _write(key.format(scope), value)


def _quiet(interface: str) -> None:
    """Give an interface no link-local address: nothing is sent that the pod's owner did not ask for."""
    _write(f"ipv6/conf/{interface}/addr_gen_mode", "1")


def _write(key: str, value: str) -> None:
    try:
        Path("/proc/sys/net", key).write_text(value)
    except FileNotFoundError:
        if not key.startswith("ipv6/"):  # a kernel without IPv6 has none of these
            raise


def _index(ip: IPRoute, interface: str) -> int:
    found = ip.link_lookup(ifname=interface)
    if not found:
        raise OSError(errno.ENODEV, f"interface {interface} is not there")
    return int(found[0])


@contextlib.contextmanager
def _tolerating(number: int) -> Iterator[None]:
    """Ignore one errno, of the kernel's or of netlink's."""
    try:
        yield
    except NetlinkError as error:
        if error.code != number:
            raise
    except OSError as error:
        if error.errno != number:
            raise
