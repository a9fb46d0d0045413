from __future__ import annotations

import ipaddress

import pytest

from ebpfnet.lab import topology
from ebpfnet.lab.topology import Route, TopologyError
from ebpfnet.model.facts import Kind, Node, Pod, PodPort, Ref


def node(name: str, *addresses: str, cidrs: tuple[str, ...] = ()) -> Node:
    return Node(
        Ref(Kind.NODE, "", name),
        tuple(map(ipaddress.ip_address, addresses)),
        tuple(map(ipaddress.ip_network, cidrs)),
    )


def pod(name: str, on: str, *addresses: str, host_network: bool = False) -> Pod:
    parsed = tuple(map(ipaddress.ip_address, addresses))
    return Pod(Ref(Kind.POD, "default", name), on, parsed, (), (PodPort("http", 6, 8080),), host_network)


A = node("a", "10.0.0.1", "fd00::1", cidrs=("10.244.1.0/24", "fd00:1::/64"))
B = node("b", "10.0.0.2", "fd00::2", cidrs=("10.244.2.0/24", "fd00:2::/64"))


def test_same_manifests_same_plan():
    pods = [pod("x", "a", "10.244.1.2"), pod("y", "b", "10.244.2.2")]
    assert topology.plan("lab", [A, B], pods) == topology.plan("lab", [B, A], pods[::-1])


def test_two_labs_share_no_name():
    first, second = (topology.plan(name, [A], [pod("x", "a", "10.244.1.2")]) for name in ("one", "two"))
    assert {first.uplink_netns, first.nodes[0].netns, first.pods[0].netns}.isdisjoint(
        {second.uplink_netns, second.nodes[0].netns, second.pods[0].netns}
    )


def test_interface_names_fit_the_kernel():
    plan = topology.plan("lab", [A], [pod("x" * 200, "a", "10.244.1.2")])
    assert len(plan.pods[0].host_interface) < 16
    assert len(plan.nodes[0].bridge_port) < 16


def test_alias_is_what_the_agent_looks_for():
    found = topology.plan("lab", [A], [pod("x", "a", "10.244.1.2")]).pods[0]
    assert found.alias == f"ebpfnet pod=default/x mac={found.mac}"


def test_macs_are_local_and_unicast():
    found = topology.plan("lab", [A], [pod("x", "a", "10.244.1.2")]).pods[0]
    assert int(found.mac[:2], 16) & 3 == 2
    assert found.mac != found.host_mac


def test_routes_lead_to_the_other_nodes_blocks_in_both_families():
    plan = topology.plan("lab", [A, B], [])
    assert topology.routes(plan, plan.nodes[0]) == (
        Route("10.244.2.0/24", "10.0.0.2"),
        Route("fd00:2::/64", "fd00::2"),
    )


def test_a_pod_outside_of_its_nodes_blocks_has_its_own_route():
    plan = topology.plan("lab", [A, B], [pod("x", "b", "172.16.5.5")])
    assert Route("172.16.5.5/32", "10.0.0.2") in topology.routes(plan, plan.nodes[0])


def test_a_pod_of_the_hosts_network_has_no_wire():
    found = topology.plan("lab", [A], [pod("x", "a", "10.0.0.1", host_network=True)])
    assert (found.pods[0].host_interface, found.pods[0].netns) == ("", found.nodes[0].netns)


def test_a_bare_pod_name_is_in_default():
    plan = topology.plan("lab", [A], [pod("x", "a", "10.244.1.2")])
    assert plan.pod("x") is plan.pod("default/x") is plan.pods[0]


@pytest.mark.parametrize(
    ("nodes", "pods", "message"),
    [
        ([], [], "no Node"),
        ([node("a")], [], r"Node a: status\.addresses: no InternalIP"),
        ([A], [pod("x", "a")], r"Pod default/x: status\.podIPs: missing"),
        ([A], [pod("x", "", "10.244.1.2")], r"Pod default/x: spec\.nodeName: missing"),
        ([A], [pod("x", "z", "10.244.1.2")], r"Pod default/x: spec\.nodeName: no Node z"),
        ([A], [pod("../x", "a", "10.244.1.2")], r"metadata\.name: not a DNS name"),
        (
            [A],
            [pod("x", "a", "10.244.1.2"), pod("y", "a", "10.244.1.2")],
            r"Pod default/y: status\.podIPs: 10\.244\.1\.2 is also an address of Pod default/x",
        ),
        ([A, node("b", "10.0.0.1")], [], r"Node b: status\.addresses: 10\.0\.0\.1 is also"),
        ([A, node("b", "10.0.0.2")], [pod("x", "b", "fd00:2::5")], r"Node b: status\.addresses: no IPv6 InternalIP"),
    ],
)
def test_refused(nodes: list[Node], pods: list[Pod], message: str):
    with pytest.raises(TopologyError, match=message):
        topology.plan("lab", nodes, pods)


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "-a", "a" * 41])
def test_lab_names_that_could_leave_their_folder(name: str):
    with pytest.raises(TopologyError, match="lab name"):
        topology.empty(name)
