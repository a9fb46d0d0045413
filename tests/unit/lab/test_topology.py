from __future__ import annotations

import dataclasses
import ipaddress

import pytest

from ebpfnet.lab import topology
from ebpfnet.lab.topology import Plan, PodPlan, Route, TopologyError
from ebpfnet.model.facts import Kind, Node, Pod, PodPort, Ref, Service


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


def plan(nodes: list[Node], pods: list[Pod], name: str = "lab", kept: tuple[PodPlan, ...] = ()) -> Plan:
    found = topology.plan(name, nodes, pods, kept)
    assert found.left_out == ()
    return found.plan


def test_same_manifests_same_plan():
    pods = [pod("x", "a", "10.244.1.2"), pod("y", "b", "10.244.2.2")]
    assert plan([A, B], pods) == plan([B, A], pods[::-1])


def test_two_labs_share_no_name():
    first, second = (plan([A], [pod("x", "a", "10.244.1.2")], name) for name in ("one", "two"))
    assert {first.uplink_netns, first.nodes[0].netns, first.pods[0].netns}.isdisjoint(
        {second.uplink_netns, second.nodes[0].netns, second.pods[0].netns}
    )


def test_interface_names_fit_the_kernel():
    whole = plan([A], [pod("x" * 200, "a", "10.244.1.2")])
    assert len(whole.pods[0].host_interface) < 16
    assert len(whole.nodes[0].bridge_port) < 16


def test_alias_is_what_the_agent_looks_for():
    found = plan([A], [pod("x", "a", "10.244.1.2")]).pods[0]
    assert found.alias == f"ebpfnet pod=default/x mac={found.mac}"


def test_macs_are_local_and_unicast():
    found = plan([A], [pod("x", "a", "10.244.1.2")]).pods[0]
    assert int(found.mac[:2], 16) & 3 == 2
    assert found.mac != found.host_mac


def test_routes_lead_to_the_other_nodes_blocks_in_both_families():
    whole = plan([A, B], [])
    assert topology.routes(whole, whole.nodes[0]) == (
        Route("10.244.2.0/24", "10.0.0.2"),
        Route("fd00:2::/64", "fd00::2"),
    )


def test_a_pod_outside_of_its_nodes_blocks_has_its_own_route():
    whole = plan([A, B], [pod("x", "b", "172.16.5.5")])
    assert Route("172.16.5.5/32", "10.0.0.2") in topology.routes(whole, whole.nodes[0])


def test_a_pod_of_the_hosts_network_has_no_wire():
    found = plan([A], [pod("x", "a", "10.0.0.1", host_network=True)])
    assert (found.pods[0].host_interface, found.pods[0].netns) == ("", found.nodes[0].netns)


def outside(nodes: list[Node], pods: list[Pod], *services: Service) -> Plan:
    return topology.plan("lab", nodes, pods, services=services).plan


def service(*addresses: str) -> Service:
    parsed = tuple(map(ipaddress.ip_address, addresses))
    return Service(Ref(Kind.SERVICE, "default", "s"), (), (), "", external_ips=parsed[:1], load_balancer_ips=parsed[1:])


def test_the_outside_has_addresses_that_the_cluster_has_not():
    assert outside([A, B], []).outside == plan([A, B], []).outside
    taken = [node("a", "192.0.2.1", "fd00::1", cidrs=("2001:db8::/126",)), node("b", "192.0.2.3", "fd00::2")]
    found = outside(taken, [pod("x", "a", "192.0.2.4")], service("192.0.2.2", "192.0.2.6")).outside
    assert found is not None
    assert found.addresses == ("192.0.2.5", "192.0.2.7", "2001:db8::4", "2001:db8::5")


def test_the_outside_has_the_families_of_the_nodes():
    found = outside([node("a", "10.0.0.1")], []).outside
    assert found is not None
    assert found.addresses == ("192.0.2.1", "192.0.2.2")


def test_the_outside_knows_a_way_to_addresses_of_services_and_none_to_pods():
    called = service("203.0.113.9", "2001:db8:1::9", "10.0.0.2", "10.244.1.99")
    whole = outside([A, B], [pod("x", "b", "172.16.5.5")], called)
    assert topology.outside_routes(whole) == (
        Route("203.0.113.9/32", "10.0.0.1"),
        Route("2001:db8:1::9/128", "fd00::1"),
    )


def test_a_bare_pod_name_is_in_default():
    whole = plan([A], [pod("x", "a", "10.244.1.2")])
    assert whole.pod("x") is whole.pod("default/x") is whole.pods[0]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "no Node"),
        ([node("a")], r"Node a: status\.addresses: no InternalIP"),
        ([A, node("b", "10.0.0.1")], r"Node b: status\.addresses: 10\.0\.0\.1 is also"),
        ([node("../a", "10.0.0.1")], r"metadata\.name: not a DNS name"),
    ],
)
def test_nodes_that_make_no_cluster(nodes: list[Node], message: str):
    with pytest.raises(TopologyError, match=message):
        topology.plan("lab", nodes, [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pod("y", "a"), "Pod default/y: status.podIPs: the pod has no address (yet)"),
        (pod("y", "", "10.244.1.3"), "Pod default/y: spec.nodeName: missing"),
        (pod("y", "z", "10.244.1.3"), "Pod default/y: spec.nodeName: no Node z"),
        (pod("../y", "a", "10.244.1.3"), "Pod default/../y: metadata.name: not a DNS name"),
        (pod("y", "a", "10.244.1.2"), "Pod default/y: status.podIPs: 10.244.1.2 is also an address of Pod default/x"),
        (pod("y", "a", "10.0.0.1"), "Pod default/y: status.podIPs: 10.0.0.1 is also an address of Node a"),
        (
            pod("y", "c", "fd00:2::5"),
            "Pod default/y: status.podIPs: no other node can reach fd00:2::5: Node c has no IPv6",
        ),
    ],
)
def test_a_bad_pod_is_named_and_stops_no_other(bad: Pod, message: str):
    good = [pod("x", "a", "10.244.1.2"), pod("z", "a", "10.244.1.4")]
    found = topology.plan("lab", [A, node("c", "10.0.0.3")], [bad, *good])
    assert [each.name for each in found.plan.pods] == ["x", "z"]
    assert [str(problem).startswith(message) for problem in found.left_out] == [True], found.left_out


def test_a_finished_pod_gets_no_wire_and_is_no_problem():
    over = dataclasses.replace(pod("x", "a"), finished=True)
    assert plan([A], [over, dataclasses.replace(over, host_network=True)]).pods == ()


def test_a_pod_that_can_not_be_read_now_stays_until_its_address_is_taken():
    (old,) = plan([A], [pod("x", "a", "10.244.1.2")]).pods
    assert plan([A], [], kept=(old,)).pods == (old,)
    assert [each.name for each in plan([A], [pod("y", "a", "10.244.1.2")], kept=(old,)).pods] == ["y"]
    assert plan([B], [], kept=(old,)).pods == ()


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "-a", "a" * 41])
def test_lab_names_that_could_leave_their_folder(name: str):
    with pytest.raises(TopologyError, match="lab name"):
        topology.empty(name)
