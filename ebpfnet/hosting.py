"""This node as services see it: what its interfaces, sockets and flags say, and the health checks it answers for them.

The watch tells of nodes, services and slices (``learn``), a thread of its own of addresses and sockets (``follow``);
both end in one ``Host``. The lock is the agent's: whoever calls ``learn`` holds it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ebpfnet.datapath import sockets
from ebpfnet.datapath.addresses import Own, own
from ebpfnet.datapath.netlink import ADDRESSES, SOCK_DIAG, Changes, Reader
from ebpfnet.exits import NotRunning
from ebpfnet.model.facts import (
    Change,
    Delete,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Kind,
    Node,
    Problem,
    Ref,
    Service,
    Upsert,
)
from ebpfnet.model.host import Host
from ebpfnet.model.local import LocalReady
from ebpfnet.operate.healthports import Check, HealthPorts
from ebpfnet.operate.nodeports import PRIMARY_ONLY, NodePortAddresses

log = logging.getLogger(__name__)

SYSCTL = Path("/proc/sys/net/ipv4")
WAKE_S = 0.5
FIRST_PORT, LAST_PORT = 1024, 65535
EVERY_ADDRESS = {4: "0.0.0.0", 6: "::"}  # noqa: S104  # as --nodeport-addresses says
HEALTH_FIELD = "spec.healthCheckNodePort"

Ports = tuple[int, int]
"""First and last of a range."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What flags say of the node. ``bind_address``: kube-proxy's, the primary address of its family when it is one."""

    nodeport_addresses: NodePortAddresses = PRIMARY_ONLY
    nodeport_range: Ports = (30000, 32767)
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    external_ip_cidrs: tuple[IPNetwork, ...] = ()
    bind_address: IPAddress | None = None


class Observed(NamedTuple):
    """What this network namespace says. ``uplinks``: indexes of interfaces; ``listening``: within the NodePorts."""

    addresses: tuple[Own, ...] = ()
    uplinks: tuple[int, ...] = ()
    listening: tuple[sockets.Listening, ...] = ()
    local_ports: Ports = (32768, 60999)
    reserved_ports: tuple[Ports, ...] = ()


def observe(routes: Reader, diag: Reader, uplinks: Callable[[], Iterable[int]], nodeports: Ports) -> Observed:
    """Look at this network namespace."""
    try:
        found = tuple(uplinks())
    except NotRunning:  # none just now
        found = ()
    first, last = nodeports
    listening = {each for each in sockets.listening(diag) if first <= each.port <= last}
    reserved = _sysctl("ip_local_reserved_ports")
    low, high = (int(word) for word in (_sysctl("ip_local_port_range") or "32768 60999").split())
    return Observed(
        own(routes),
        found,
        tuple(sorted(listening, key=repr)),
        (low, high),
        tuple(_range(text) for text in reserved.split(",") if text),
    )


def describe(settings: HostSettings, seen: Observed, node: Node | None, nodes: Iterable[Node]) -> Host:
    """Join what the flags, this namespace and the cluster say."""
    everyone = [each.address for each in seen.addresses]
    internal = list(node.addresses) if node else []
    if settings.bind_address is not None and not settings.bind_address.is_unspecified:
        internal = [settings.bind_address, *internal]  # detectNodeIPs of kubernetes cmd/kube-proxy/app/server.go
    primary = [address for version in (4, 6) for address in _first(internal, version)]
    served = settings.nodeport_addresses.choose(everyone, primary)
    # An interface's link-local address is nobody's endpoint, and every pod brings one: only where NodePorts are there.
    addresses = [each for each in dict.fromkeys(everyone) if not each.is_link_local or each in served]
    return Host(
        addresses=tuple(sorted(addresses, key=_order)),
        nodeport_addresses=tuple(sorted(served, key=_order)),
        sources=tuple(_sources(seen, internal)),
        source_ports=source_ports(settings.nodeport_range, seen.local_ports, seen.reserved_ports),
        pod_cidrs=_distinct([*settings.cluster_cidrs, *(cidr for each in nodes for cidr in each.pod_cidrs)]),
        service_cidrs=settings.service_cidrs,
        external_ip_cidrs=settings.external_ip_cidrs,
        busy=frozenset(
            (each.protocol, each.port) for each in seen.listening if each.address is None or each.address in served
        ),
    )


def _first(addresses: Iterable[IPAddress], version: int) -> list[IPAddress]:
    return [each for each in addresses if each.version == version][:1]


def _sources(seen: Observed, internal: Iterable[IPAddress]) -> Iterable[IPAddress]:
    """Yield what stands for a client of each family: the Node's InternalIP, else the uplink's first global address."""
    here = {each.address for each in seen.addresses}
    for version in (4, 6):
        known = _first((each for each in internal if each in here), version)
        others = [
            each.address
            for ifindex in seen.uplinks
            for each in seen.addresses
            if each.ifindex == ifindex and each.lasting and not each.address.is_link_local
        ]
        yield from known or _first(others, version)


def source_ports(nodeports: Ports, local: Ports, reserved: Iterable[Ports] = ()) -> Ports:
    """Return the largest range from 1024 on without NodePorts, ports the kernel gives to sockets, and reserved ones.

    A node that gives nearly all ports to its sockets leaves none worth having: then they are shared, and each port is
    tried against the sockets that there are.
    """
    found = _largest_gap([nodeports, local, *reserved])
    if found[1] - found[0] + 1 < SOURCE_PORTS_MIN:
        found = _largest_gap([nodeports, *reserved])
    return found


SOURCE_PORTS_MIN = 1024


def _largest_gap(taken: Iterable[Ports]) -> Ports:
    best, start = (FIRST_PORT, FIRST_PORT - 1), FIRST_PORT
    for first, last in sorted([*taken, (LAST_PORT + 1, LAST_PORT + 1)]):
        if first - start > best[1] - best[0] + 1:
            best = (start, first - 1)
        start = max(start, last + 1)
    return best


class Hosting:
    """Keeps a ``Host`` up to date, and health check ports.

    ``changed`` is called, by any thread, when the host or ``problems`` have.
    """

    def __init__(
        self,
        settings: HostSettings,
        node: str,
        uplinks: Callable[[], Iterable[int]],
        lock: threading.Lock,
        changed: Callable[[], None],
    ) -> None:
        self.told = 0
        """Counts the changes of ``problems``."""
        self._settings = settings
        self._node = Ref(Kind.NODE, "", node)
        self._uplinks = uplinks
        self._lock = lock
        self._changed = changed
        self._serve: Callable[[Host], None]
        self._seen = Observed()
        self._nodes: dict[Ref, Node] = {}
        self._host: Host | None = None
        self._look_again = threading.Event()
        self._ready = LocalReady(node)
        self._checked: dict[Ref, Service] = {}
        self._health: HealthPorts | None = None
        self._twice: dict[Ref, str] = {}
        self._owners: dict[int, Ref] = {}

    def begin(self, serve: Callable[[Host], None]) -> None:
        """Look for the first time: what the first sync writes must be right.

        ``serve`` gets each new host, under the lock.
        """
        self._serve = serve
        for cidr in self._settings.nodeport_addresses.loopback:
            log.warning("--nodeport-addresses: %s has loopback addresses; NodePorts are not served there", cidr)
        with Reader() as routes, Reader(SOCK_DIAG) as diag:
            self._look(routes, diag)

    def serve_health(self, healthy: Callable[[], bool]) -> None:
        """Answer health checks from now on."""

        def noted() -> None:
            self.told += 1
            self._changed()

        with self._lock:
            self._health = HealthPorts(healthy, noted)
            self._check()

    def close(self) -> None:
        """Stop answering health checks."""
        if self._health is not None:
            self._health.close()

    def follow(self, stop: threading.Event, interval_s: float) -> None:
        """Look at addresses and sockets now, when addresses or NodePorts change, and every ``interval_s``."""
        with Changes(groups=ADDRESSES) as changes, Reader() as routes, Reader(SOCK_DIAG) as diag:
            while not stop.is_set():
                try:
                    self._look(routes, diag)
                except OSError as error:  # what was seen before holds until the next look
                    log.warning("look at this node's addresses and sockets: %s", error.strerror or error)
                due = time.monotonic() + interval_s
                while not (stop.is_set() or changes.wait(WAKE_S) or self._look_again.is_set()):
                    if time.monotonic() >= due:
                        break
                self._look_again.clear()

    def _look(self, routes: Reader, diag: Reader) -> None:
        seen = observe(routes, diag, self._uplinks, self._settings.nodeport_range)
        with self._lock:
            if seen != self._seen:
                self._seen = seen
                self._describe()

    def learn(self, changes: Iterable[Change]) -> None:
        """Take in what the cluster says of nodes and services; the caller holds the lock."""
        nodes = checks = False
        for change in changes:
            match change:
                case Upsert(EndpointSlice() as fact):
                    checks |= self._ready.set(fact)
                case Upsert(Service() as fact):
                    checks |= self._learn_service(fact)
                case Upsert(Node() as fact):
                    nodes |= self._nodes.get(fact.ref) != fact
                    self._nodes[fact.ref] = fact
                case Delete(ref) if ref.kind == Kind.ENDPOINT_SLICE:
                    checks |= self._ready.drop(ref)
                case Delete(ref) if ref.kind == Kind.SERVICE:
                    checks |= self._checked.pop(ref, None) is not None
                case Delete(ref) if ref.kind == Kind.NODE:
                    nodes |= self._nodes.pop(ref, None) is not None
        if nodes:
            self._describe()
        if checks:
            self._check()

    def _learn_service(self, service: Service) -> bool:
        if any(port.node_port for port in service.ports):
            self._look_again.set()  # a local socket may have its port
        before = self._checked.pop(service.ref, None)
        if service.health_check_port and service.external_local:
            self._checked[service.ref] = service
        return self._checked.get(service.ref) != before

    def _describe(self) -> None:
        host = describe(self._settings, self._seen, self._nodes.get(self._node), self._nodes.values())
        if host != self._host:
            self._host = host
            self._serve(host)
            self._check()
            self._changed()

    @property
    def problems(self) -> list[Problem]:
        """Health check ports that can't be served, by service."""
        failed: Mapping[int, str] = self._health.failed if self._health else {}
        found = {self._owners[port]: text for port, text in failed.items() if port in self._owners}
        return [Problem(ref, HEALTH_FIELD, text) for ref, text in sorted({**found, **self._twice}.items())]

    def _check(self) -> None:
        """Say what is to be answered at which port."""
        if self._health is None:
            return
        checks: dict[int, Check] = {}
        owners: dict[int, Ref] = {}
        twice: dict[Ref, str] = {}
        for service in sorted(self._checked.values(), key=lambda each: (each.created, each.ref)):
            port = service.health_check_port
            if port in owners:
                twice[service.ref] = f"{port} is the port of {owners[port]} already"
                continue
            owners[port] = service.ref
            families = {each.version for each in service.cluster_ips}
            ready: dict[int, int] = {
                version: self._ready.count(service.ref, ipv6=version == 6) for version in sorted(families)
            }
            checks[port] = Check(service.ref.namespace, service.ref.name, ready)
        self.told += twice != self._twice or owners != self._owners
        self._twice, self._owners = twice, owners
        self._health.update(checks, self._health_hosts())

    def _health_hosts(self) -> list[str]:
        rules, host = self._settings.nodeport_addresses, self._host or Host()
        every = [text for version, text in EVERY_ADDRESS.items() if rules.everywhere(version)]
        return every + [str(each) for each in host.nodeport_addresses if not rules.everywhere(each.version)]


def _distinct(cidrs: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(set(cidrs), key=lambda each: (each.version, each)))


def _order(address: IPAddress) -> tuple[int, bytes]:
    return address.version, address.packed


def _sysctl(name: str) -> str:
    try:
        return (SYSCTL / name).read_text().strip()
    except OSError:  # not in every namespace, and not on every kernel
        return ""


def _range(text: str) -> Ports:
    first, _, last = text.partition("-")
    return int(first), int(last or first)
