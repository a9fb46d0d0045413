"""Random events of all that policies follow from, and what tables say of connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.maps.judge import judge
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Delete,
    IPBlock,
    Kind,
    Namespace,
    NetworkPolicy,
    Node,
    NodePeer,
    Peer,
    Pod,
    PodPeer,
    PodPort,
    PolicyPort,
    PolicyRule,
    Ref,
    Synced,
    Tier,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING, Labels, Requirement, Selector
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle, wire

TCP, UDP = abi.Protocol.TCP, abi.Protocol.UDP
NAMESPACES = ("default", "other")
LOCAL = {"a": ("10.0.0.1", "fd00::1"), "b": ("10.0.0.2",), "c": ("10.0.0.3", "fd00::3")}
REMOTE = {"x": ("10.0.1.1",), "y": ("10.0.1.2", "fd00:1::2"), "z": ("10.0.0.9",)}
OUTSIDE = ("192.0.2.1", "198.51.100.7", "2001:db8::1", "10.0.1.77")
WIRES = {f"{namespace}/{name}": wire(5 + index) for namespace in NAMESPACES for index, name in enumerate(LOCAL)}


def packed(text: str) -> bytes:
    return abi.pack_address(ipaddress.ip_address(text))


def where(key: str, *values: str, negated: bool = False) -> Selector:
    return Selector((Requirement(key, frozenset(values) if values else None, negated),))


def namespace(name: str, labels: Labels = ()) -> Namespace:
    return Namespace(Ref(Kind.NAMESPACE, "", name), labels)


def pod(name: str, labels: Labels = (), ports: tuple[PodPort, ...] = (), namespace: str = "default") -> Pod:
    addresses = tuple(map(ipaddress.ip_address, LOCAL[name]))
    return Pod(Ref(Kind.POD, namespace, name), "node-a", addresses, labels, ports, host_network=False)


def peer(name: str, labels: Labels = (), ports: tuple[PodPort, ...] = (), namespace: str = "default", *, at="") -> Peer:
    raw = b"".join(map(packed, REMOTE[at or name]))
    return Peer(Ref(Kind.PEER, namespace, name), labels, raw, ports)


def policy(
    name: str,
    pods: Selector = EVERYTHING,
    ingress: Sequence[PolicyRule] | None = (),
    egress: Sequence[PolicyRule] | None = None,
    namespace: str = "default",
    **more: Any,
) -> NetworkPolicy:
    ref = Ref(Kind.NETWORK_POLICY, namespace, name)
    incoming, outgoing = (None if each is None else tuple(each) for each in (ingress, egress))
    return NetworkPolicy(ref, pods, incoming, outgoing, **more)


labels = st.sampled_from([(), (("app", "web"),), (("app", "db"),), (("app", "web"), ("tier", "x"))])
ports = st.sampled_from([(), (PodPort("http", TCP, 80),), (PodPort("http", TCP, 81), PodPort("dns", UDP, 53))])
namespaces = st.sampled_from(["default", "default", "default", "other"])
selectors = st.sampled_from([EVERYTHING, where("app", "web"), where("app", "db"), where("tier", negated=True)])
blocks = st.sampled_from(
    [
        IPBlock(ipaddress.ip_network("0.0.0.0/0")),
        IPBlock(ipaddress.ip_network("::/0"), (ipaddress.ip_network("fd00::/64"),)),
        IPBlock(ipaddress.ip_network("10.0.0.0/16"), (ipaddress.ip_network("10.0.1.0/24"),)),
        IPBlock(ipaddress.ip_network("192.0.2.0/24")),
    ]
)
pod_peers = st.builds(PodPeer, selectors, st.sampled_from([None, EVERYTHING, where("team", "red")]))
far_peers = st.builds(PodPeer, selectors, st.sampled_from([EVERYTHING, where("team", "red")]))
node_peers = st.builds(NodePeer, st.sampled_from([EVERYTHING, where("app", "web")]))
policy_ports = st.sampled_from(
    [PolicyPort(TCP, 80, 80), PolicyPort(TCP, 80, 90), PolicyPort(UDP), PolicyPort(TCP, name="http")]
)
lists_of_ports = st.lists(policy_ports, max_size=2).map(tuple)
rules = st.builds(PolicyRule, st.lists(st.one_of(pod_peers, blocks), max_size=2).map(tuple), lists_of_ports)
directions = st.one_of(st.none(), st.lists(rules, max_size=2).map(tuple))
flags = st.sampled_from([False, False, True])
policies = st.builds(
    lambda name, pods, ingress, egress, namespace, audited, graceful: policy(
        name, pods, ingress, egress, namespace, audited=audited, graceful=graceful
    ),
    st.sampled_from("pq"),
    selectors,
    directions,
    directions,
    namespaces,
    flags,
    st.sampled_from([None, True]),
)
cluster_rules = st.lists(
    st.builds(
        ClusterRule,
        st.just(""),
        st.sampled_from(Action),
        st.lists(st.one_of(far_peers, blocks, node_peers), max_size=2).map(tuple),
        lists_of_ports,
    ),
    max_size=2,
).map(tuple)
cluster_policies = st.builds(
    lambda name, tier, priority, chosen, pods, ingress, egress: ClusterNetworkPolicy(
        Ref(Kind.CLUSTER_NETWORK_POLICY, "", name), tier, priority, chosen, pods, ingress, egress
    ),
    st.sampled_from("kl"),
    st.sampled_from(Tier),
    st.integers(1, 2),
    st.sampled_from([EVERYTHING, where("kubernetes.io/metadata.name", "default"), where("team", "red")]),
    selectors,
    cluster_rules,
    cluster_rules,
)
TEAMS = st.sampled_from([(), (("team", "red"),)])
events = st.one_of(
    st.builds(lambda *args: Upsert(pod(*args)), st.sampled_from(list(LOCAL)), labels, ports, namespaces),
    st.builds(
        lambda *args, at: Upsert(peer(*args, at=at)),
        st.sampled_from(list(REMOTE)),
        labels,
        ports,
        namespaces,
        at=st.sampled_from(list(REMOTE)),
    ),
    policies.map(Upsert),
    policies.map(Upsert),
    cluster_policies.map(Upsert),
    st.builds(
        lambda name, team: Upsert(namespace(name, (("kubernetes.io/metadata.name", name), *team))), namespaces, TEAMS
    ),
    st.builds(
        lambda own: Upsert(Node(Ref(Kind.NODE, "", "node-b"), (ipaddress.ip_address("192.0.2.1"),), (), labels=own)),
        labels,
    ),
    st.builds(lambda n, ns: Delete(Ref(Kind.NETWORK_POLICY, ns, n)), st.sampled_from("pq"), namespaces),
    st.builds(lambda n: Delete(Ref(Kind.CLUSTER_NETWORK_POLICY, "", n)), st.sampled_from("kl")),
    st.builds(lambda n, ns: Delete(Ref(Kind.PEER, ns, n)), st.sampled_from(list(REMOTE)), namespaces),
    st.builds(lambda n, ns: Delete(Ref(Kind.POD, ns, n)), st.sampled_from(list(LOCAL)), namespaces),
    st.builds(lambda n: Delete(Ref(Kind.NAMESPACE, "", n)), namespaces),
)

BASE = [
    Upsert(namespace("default", (("kubernetes.io/metadata.name", "default"),))),
    Upsert(namespace("other", (("kubernetes.io/metadata.name", "other"), ("team", "red")))),
    Upsert(pod("a", (("app", "web"),), (PodPort("http", TCP, 80),))),
    Upsert(pod("b", (("app", "db"),))),
    Upsert(pod("c")),
    Upsert(peer("x", (("app", "web"),), (PodPort("http", TCP, 81),))),
    Upsert(peer("y", (("app", "db"),), namespace="other")),
    Upsert(policy("q", ingress=[PolicyRule((PodPeer(where("app", "web")),), (PolicyPort(TCP, 80, 80),))])),
]
"""Where every series of events begins."""
series = st.lists(events, min_size=3, max_size=16).map(lambda some: [*BASE, *some])

ADDRESSES = [packed(each) for own in (*LOCAL.values(), *REMOTE.values()) for each in own] + [*map(packed, OUTSIDE)]
HERE = [packed(each) for own in LOCAL.values() for each in own]
PROBES = [
    (*((mine, other) if direction == abi.Direction.EGRESS else (other, mine)), protocol, port, direction)
    for mine in HERE
    for other in ADDRESSES
    for protocol, port in ((TCP, 80), (TCP, 81), (UDP, 53), (abi.Protocol.ICMP, 0))
    for direction in abi.Direction
    if mine != other and (mine[:12] == other[:12])
]


def verdicts(tables: Mapping[str, Table]) -> list[tuple[object, ...]]:
    """What every probe meets; by which group and class does not matter."""
    return [tuple(judge(tables, *probe)._replace(peers=0, group=0)) for probe in PROBES]


def shape(tables: Mapping[str, Table]) -> dict[str, object]:
    """All that the tables hold, with classes numbered by what is said of them."""
    rows = {name: {key: value for key, value, *_ in table.items()} for name, table in tables.items()}
    said: dict[int, list[tuple[bytes, bytes]]] = {}
    for key, value in rows["rules"].items():
        each = abi.RuleKey.unpack(key)
        said.setdefault(each.peers, []).append((each.group.to_bytes(8, "big") + bytes((each.direction,)), value))
    members: dict[int, list[bytes]] = {}
    for name in ("peers", "peer_blocks"):
        for key, value in rows[name].items():
            members.setdefault(int.from_bytes(value, "little"), []).append(key)
    classes = {
        (tuple(sorted(members.get(each, ()))), tuple(sorted(said.get(each, ())))) for each in members.keys() | said
    }
    others = {name: rows[name] for name in ("rule_ports", "names", "pods")}
    return {"classes": classes, "nobody": sorted(said.get(0, ())), **others}


def scratch(changes: Sequence[Upsert]) -> dict[str, Table]:
    """What the tables hold when all of it was there at once."""
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([*changes, Synced()])
    settle(reconciler, clock)
    return tables
