"""What must become of a new connection to any kind of Service, read from plain manifests: slow, and none of our code.

Written from the Kubernetes API reference and what kube-proxy's nftables mode does (pkg/proxy/nftables/README.md):

- Service: ``clusterIPs``, ``ports``, ``externalIPs``, ``status.loadBalancer.ingress`` (``ipMode``: KEP-1860),
  ``externalTrafficPolicy`` (KEP-1669 for what is terminating), ``internalTrafficPolicy`` (KEP-2086),
  ``loadBalancerSourceRanges``; families: pkg/proxy/serviceport.go, servicechangetracker.go
- EndpointSlice: ``conditions`` (nil: ready, serving, not terminating), ``hints`` (KEP-2433, KEP-4444, KEP-3015); of an
  endpoint's addresses the first: pkg/proxy/endpointslicecache.go
- the choice of endpoints: pkg/proxy/topology.go, CategorizeEndpoints, for each port and family by itself
- undefined ports of a ClusterIP, unallocated addresses: pkg/proxy/nftables/proxier.go, cluster-ips-check
- what is not ours: anything with one of the labels ``service.kubernetes.io/service-proxy-name`` and
  ``service.kubernetes.io/headless`` (cmd/kube-proxy/app/server.go), ``clusterIP: None`` and ExternalName
  (pkg/proxy/util/utils.go, ShouldSkipService)
- ``externalIPs`` are served inside named blocks only (KEP-5707, CVE-2020-8554)

Ours differs on purpose: the client's address is replaced only where the answer could not come back otherwise, while
kube-proxy masquerades everything external under the policy Cluster; and a load balancer's address that is the node's
own or a pod's is not served. With the annotation ``ebpfnet.io/direct-server-return: "true"`` that of a client outside
is not replaced, but of one that is a node, and at a NodePort where it calls an address that no Node object has.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Manifest = dict[str, Any]
End = tuple[str, int]
PROXY_NAME, HEADLESS = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"
ANY = {False: "0.0.0.0", True: "::"}  # never bound
SERVICE_NAME, ZONE = "kubernetes.io/service-name", "topology.kubernetes.io/zone"
DIRECT = "ebpfnet.io/direct-server-return"


class Action(enum.StrEnum):
    """What becomes of a packet."""

    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"
    PASS = "pass"
    """No service of ours: whatever routing says."""


class Who(enum.StrEnum):
    """Where a client is, as this node sees it."""

    POD = "pod of this node"
    REMOTE_POD = "pod of another node"
    HOST = "process of this node"
    OUTSIDE = "outside"


class Client(NamedTuple):
    who: Who
    address: str


class Flags(NamedTuple):
    """What the agent was told: NodePorts at ``primary`` addresses or those of CIDRs, and three lists of CIDRs.

    Pods' addresses are those of ``cluster_cidrs`` and of the nodes' own blocks.
    """

    nodeport_addresses: tuple[str, ...] = ("primary",)
    external_ip_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    cluster_cidrs: tuple[str, ...] = ()


class Answer(NamedTuple):
    """``backends`` maps each that may be chosen to the sources that it may see; none: it can't be reached at all."""

    action: Action
    reason: str = ""
    backends: dict[End, frozenset[str]] = {}  # noqa: RUF012  # never changed


class Endpoint(NamedTuple):
    """One address of a port, as CategorizeEndpoints looks at it."""

    end: End
    local: bool
    ready: bool
    serving: bool
    terminating: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    @property
    def leaving(self) -> bool:
        return self.serving and self.terminating


class Kind(enum.IntEnum):
    """What an address is to a service; one that is two things is the first of them."""

    CLUSTER_IP = 0
    LOAD_BALANCER = 1
    EXTERNAL_IP = 2
    NODE_PORT = 3


class Claim(NamedTuple):
    """What a service says about one address and port; the least one has it."""

    created: str
    namespace: str
    name: str
    kind: Kind
    port: int

    @property
    def owner(self) -> tuple[str, str]:
        return self.namespace, self.name


class Oracle:
    """A cluster as a list of manifests, seen from one node; ``own`` are the addresses on its interfaces."""

    def __init__(self, manifests: Iterable[Manifest], node: str, flags: Flags, own: Iterable[str] = ()) -> None:
        items = list(manifests)
        self.node, self.flags = node, flags
        this = next((item for item in items if item["kind"] == "Node" and item["metadata"]["name"] == node), {})
        addresses = this.get("status", {}).get("addresses", [])
        self.primary = _first_of_each_family(each["address"] for each in addresses if each["type"] == "InternalIP")
        self.own = {*self.primary, *map(same, own)}
        self.of_nodes = {
            same(each["address"])
            for item in items
            if item["kind"] == "Node"
            for each in item.get("status", {}).get("addresses", [])
            if each["type"] == "InternalIP"
        }
        self.zone = (this.get("metadata", {}).get("labels") or {}).get(ZONE, "")
        blocks = [each for item in items if item["kind"] == "Node" for each in item.get("spec", {}).get("podCIDRs", [])]
        self.pod_blocks = (*flags.cluster_cidrs, *blocks)
        self.pods_here = {
            same(entry["ip"])
            for item in items
            if item["kind"] == "Pod" and item["spec"].get("nodeName") == node and not item["spec"].get("hostNetwork")
            for entry in item.get("status", {}).get("podIPs", [])
        }
        everything = {owner_of(item): item for item in items if item["kind"] == "Service"}
        self.services = {owner: item for owner, item in everything.items() if not skipped(item)}
        self.cluster_ips = {same(text) for item in self.services.values() for text in cluster_ips(item).values()}
        self.others = {
            same(text) for item in everything.values() if _labelled(item) for text in cluster_ips(item).values()
        }
        self.slices: dict[tuple[str, str], list[Manifest]] = {}
        for item in items:
            if item["kind"] == "EndpointSlice" and not _labelled(item):
                service = (item["metadata"].get("labels") or {}).get(SERVICE_NAME, "")
                self.slices.setdefault((item["metadata"]["namespace"], service), []).append(item)
        self.claims: dict[tuple[str, int, str], list[Claim]] = {}
        for owner, item in self.services.items():
            for where, claim in self._claims(owner, item):
                self.claims.setdefault(where, []).append(claim)

    # Who has which address

    def _claims(self, owner: tuple[str, str], item: Manifest) -> Iterator[tuple[tuple[str, int, str], Claim]]:
        spec, created = item["spec"], item["metadata"].get("creationTimestamp") or "9999"
        for ipv6, cluster_ip in cluster_ips(item).items():
            for index, port in enumerate(spec["ports"]):
                protocol = port.get("protocol") or "TCP"

                for kind, address, number in self._addresses(item, port, cluster_ip):
                    if is_v6(address) == ipv6 and number:
                        yield (same(address), number, protocol), Claim(created, *owner, kind, index)

    def _addresses(self, item: Manifest, port: Manifest, cluster_ip: str) -> Iterator[tuple[Kind, str, int]]:
        yield Kind.CLUSTER_IP, cluster_ip, port["port"]
        yield Kind.NODE_PORT, ANY[is_v6(cluster_ip)], port.get("nodePort") or 0
        for address in self._load_balancer(item):
            yield Kind.LOAD_BALANCER, address, port["port"]
        for address in item["spec"].get("externalIPs") or ():
            if inside(address, self.flags.external_ip_cidrs):
                yield Kind.EXTERNAL_IP, address, port["port"]

    def _load_balancer(self, item: Manifest) -> Iterator[str]:
        """The addresses that are served here: with ``ipMode: Proxy`` the load balancer sends to the node itself."""
        for entry in item.get("status", {}).get("loadBalancer", {}).get("ingress") or ():
            if entry.get("ip") and (entry.get("ipMode") or "VIP") == "VIP" and not self._taken(entry["ip"]):
                yield entry["ip"]

    def _taken(self, address: str) -> bool:
        """A load balancer must not take over the node, or pods; kube-proxy would let it."""
        return same(address) in self.own or inside(address, self.flags.cluster_cidrs)

    def serves_nodeports(self, address: str) -> bool:
        """Without blocks of its family at every address (pkg/proxy/util/nodeport_addresses.go), but loopback ones."""
        if same(address) not in self.own or ipaddress.ip_address(address).is_loopback:
            return False
        if "primary" in self.flags.nodeport_addresses:
            return same(address) in self.primary
        blocks = [block for block in self.flags.nodeport_addresses if is_v6(block) == is_v6(address)]
        return not blocks or inside(address, blocks)

    # What must happen

    def answer(self, client: Client, destination: str, port: int, protocol: str) -> Answer:
        """Return what must become of a client's first packet at this node."""
        destination = same(destination)
        claims = self.claims.get((destination, port, protocol))
        if not claims:
            if destination in self.cluster_ips:
                return Answer(Action.REJECT, "UNDEFINED_PORT")
            if self.serves_nodeports(destination):
                claims = self.claims.get((ANY[is_v6(destination)], port, protocol))
        if claims:
            return self._through(min(claims), client, destination)
        allocated = destination in self.own or destination in self.others
        if inside(destination, self.flags.service_cidrs) and not allocated:
            return Answer(Action.DROP, "UNALLOCATED_ADDRESS")
        return Answer(Action.PASS)

    def _through(self, claim: Claim, client: Client, destination: str) -> Answer:
        item, ipv6 = self.services[claim.owner], is_v6(destination)
        spec = item["spec"]
        if claim.kind == Kind.LOAD_BALANCER and not _welcome(
            client.address, spec.get("loadBalancerSourceRanges") or ()
        ):
            return Answer(Action.DROP, "SOURCE_RANGE")
        within = client.who in {Who.POD, Who.HOST} or inside(client.address, self.pod_blocks)
        if claim.kind == Kind.CLUSTER_IP:
            local = spec.get("internalTrafficPolicy") == "Local"
        else:  # clients in the cluster are short-circuited to all endpoints
            local = spec.get("externalTrafficPolicy") == "Local" and not within
        every = self.endpoints(claim.owner, spec["ports"][claim.port], ipv6=ipv6)
        everywhere, here = self.categorize(every)
        chosen = here if local else everywhere
        if not chosen:
            return Answer(Action.DROP, "NO_LOCAL_ENDPOINTS") if everywhere else Answer(Action.REJECT, "NO_ENDPOINTS")
        said = (item["metadata"].get("annotations") or {}).get(DIRECT)
        direct = said == "true" and claim.kind != Kind.CLUSTER_IP and not within
        direct &= claim.kind != Kind.NODE_PORT or destination in self.of_nodes
        direct &= same(client.address) not in self.of_nodes  # its answer would go to its own node, past this one
        ends = {end: self._sources(client, destination, end, direct=direct) for end in chosen}
        return Answer(Action.FORWARD, "", ends)

    def _sources(self, client: Client, destination: str, end: End, *, direct: bool) -> frozenset[str]:
        """The address that a backend may see as its client's."""
        address, ipv6 = same(client.address), is_v6(destination)
        if client.who in {Who.POD, Who.HOST}:
            if end[0] != address:
                return frozenset({address})
            return frozenset({destination} if client.who == Who.POD else {destination, address})
        if end[0] in self.pods_here or end[0] in self.own:
            return frozenset({address})
        node = frozenset(each for each in self.primary if is_v6(each) == ipv6)
        return frozenset({address}) if direct and node else node

    # Endpoints

    def endpoints(self, owner: tuple[str, str], port: Manifest, *, ipv6: bool) -> list[Endpoint]:
        """Return the endpoints of a service's port in one family, each once."""
        found: dict[End, Endpoint] = {}
        for item in self.slices.get(owner, ()):
            if item["addressType"] != ("IPv6" if ipv6 else "IPv4"):
                continue
            for entry in item.get("ports") or ():
                same_name = (entry.get("name") or "") == (port.get("name") or "")
                same_protocol = (entry.get("protocol") or "TCP") == (port.get("protocol") or "TCP")
                if not (same_name and same_protocol and entry.get("port")):
                    continue
                for each in item.get("endpoints") or ():
                    endpoint = self._endpoint(each, entry["port"])
                    if is_v6(endpoint.end[0]) == ipv6 and (endpoint.end not in found or endpoint.local):
                        found[endpoint.end] = endpoint
        return list(found.values())

    def _endpoint(self, each: Manifest, port: int) -> Endpoint:
        conditions, hints = each.get("conditions") or {}, each.get("hints") or {}
        return Endpoint(
            (same(each["addresses"][0]), port),
            each.get("nodeName") == self.node,
            conditions.get("ready") is not False,
            conditions.get("serving") is not False,
            conditions.get("terminating") is True,
            frozenset(hint["name"] for hint in hints.get("forZones") or ()),
            frozenset(hint["name"] for hint in hints.get("forNodes") or ()),
        )

    def categorize(self, every: list[Endpoint]) -> tuple[set[End], set[End]]:
        """Return the endpoints under the policies Cluster and Local."""
        ready = [each for each in every if each.ready]
        near = self._hinted(ready) or [each for each in every if each.leaving]
        here = [each for each in ready if each.local] or [each for each in every if each.leaving and each.local]
        return {each.end for each in near}, {each.end for each in here}

    def _hinted(self, ready: list[Endpoint]) -> list[Endpoint]:
        """Hints count only if every ready endpoint has one, and one of them is for us."""
        if all(each.nodes for each in ready) and (mine := [each for each in ready if self.node in each.nodes]):
            return mine
        if all(each.zones for each in ready) and (mine := [each for each in ready if self.zone in each.zones]):
            return mine
        return ready


def _welcome(address: str, ranges: Iterable[str]) -> bool:
    """Ranges of the other family say nothing (serviceport.go). What is no block lets nobody in: the API forbids it."""
    texts = [text.strip() for text in ranges]
    valid = [text for text in texts if _is_block(text)]
    alike = [text for text in valid if is_v6(text) == is_v6(address)]
    return inside(address, alike) if alike else bool(valid or not texts)


def _is_block(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def owner_of(item: Manifest) -> tuple[str, str]:
    """Return namespace and name."""
    return item["metadata"].get("namespace", "default"), item["metadata"]["name"]


def cluster_ips(item: Manifest) -> dict[bool, str]:
    """Return a service's cluster IPs by family (True: IPv6): where it has none it is not served at all."""
    spec = item["spec"]
    texts = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return {is_v6(text): text for text in texts if text and text != "None"}


def skipped(item: Manifest) -> bool:
    """Say whether a service is none of a proxy's business."""
    return _labelled(item) or item["spec"].get("type") == "ExternalName" or not cluster_ips(item)


def _labelled(item: Manifest) -> bool:
    labels = item["metadata"].get("labels") or {}
    return PROXY_NAME in labels or HEADLESS in labels


def is_v6(text: str) -> bool:
    return ":" in text


@functools.cache
def same(text: str) -> str:
    """Return the one way to write an address."""
    return str(ipaddress.ip_address(text))


def inside(address: str, blocks: Iterable[str]) -> bool:
    """Say whether an address is in one of some blocks, of which only those of its family count."""
    return any(_contains(block, address) for block in blocks)


@functools.cache
def _contains(block: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(block)  # False for the other family


def _first_of_each_family(addresses: Iterable[str]) -> set[str]:
    first: dict[bool, str] = {}
    for address in addresses:
        first.setdefault(is_v6(address), same(address))
    return set(first.values())
