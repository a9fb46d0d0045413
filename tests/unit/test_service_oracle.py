"""The oracle itself, against cases written by hand from the API reference, the KEPs and kube-proxy's own tests.

pkg/proxy/topology_test.go, pkg/proxy/nftables/proxier_test.go (TestInternalTrafficPolicy,
TestExternalTrafficPolicyLocal, TestEndpointsWithTerminatingTrafficPolicy..., TestNoEndpointsReject).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.service_oracle import Action, Answer, Client, Flags, Manifest, Oracle, Who

NODE, HERE, ELSEWHERE = "n0", "10.1.0.5", "10.1.1.5"
POD, HOST = Client(Who.POD, "10.1.0.9"), Client(Who.HOST, "192.168.0.1")
REMOTE, OUTSIDE = Client(Who.REMOTE_POD, "10.1.1.9"), Client(Who.OUTSIDE, "203.0.113.7")
FLAGS = Flags(("primary",), ("198.51.100.0/24",), ("10.96.0.0/16",), ("10.1.0.0/16", "fd01::/32"))
TERMINATING = {"ready": False, "serving": True, "terminating": True}
VIP, EXTERNAL, LB, NODEPORT = ("10.96.0.1", 80), ("198.51.100.1", 80), ("198.51.100.2", 80), ("192.168.0.1", 30080)
ALL_EXTERNAL = (EXTERNAL, LB, NODEPORT)


def node(zone: str = "a") -> Manifest:
    meta: Manifest = {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone} if zone else {}}
    addresses = [{"type": "InternalIP", "address": each} for each in ("192.168.0.1", "fd00::1")]
    return {"kind": "Node", "metadata": meta, "status": {"addresses": addresses}}


def service(name: str = "web", created: str = "2026-01-01T00:00:00Z", labels: Any = None, **spec: Any) -> Manifest:
    ingress = spec.pop("ingress", [{"ip": LB[0]}])
    whole: Manifest = {"type": "LoadBalancer", "clusterIPs": [VIP[0]], "externalIPs": [EXTERNAL[0]]}
    whole |= {"ports": [{"name": "http", "port": 80, "nodePort": 30080}], **spec}
    meta: Manifest = {"name": name, "namespace": "default", "creationTimestamp": created, "labels": labels or {}}
    return {"kind": "Service", "metadata": meta, "spec": whole, "status": {"loadBalancer": {"ingress": ingress}}}


def endpoint(address: str, conditions: Any = None, zones: Any = (), nodes: Any = ()) -> Manifest:
    hints = {"forZones": [{"name": each} for each in zones], "forNodes": [{"name": each} for each in nodes]}
    where = "n0" if address.startswith(("10.1.0.", "fd01:0:0:")) else "n1"
    return {"addresses": [address], "conditions": conditions, "nodeName": where, "hints": hints}


def piece(*endpoints: Manifest, owner: str = "web", port: int = 8080, name: str = "http", **more: Any) -> Manifest:
    meta = {"name": f"{owner}-x", "namespace": "default", "labels": {"kubernetes.io/service-name": owner}}
    ports = [{"name": name, "port": port, "protocol": more.pop("protocol", "TCP")}]
    kind = {"kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta}
    return {**kind, "ports": ports, "endpoints": list(endpoints), **more}


def pod(address: str, where: str) -> Manifest:
    return {"kind": "Pod", "spec": {"nodeName": where}, "status": {"podIPs": [{"ip": address}]}}


def cluster(*items: Manifest, zone: str = "a", flags: Flags = FLAGS) -> Oracle:
    pods = [pod(HERE, "n0"), pod(POD.address, "n0"), pod(ELSEWHERE, "n1"), pod(REMOTE.address, "n1")]
    return Oracle([node(zone), *pods, *items], NODE, flags)


def ask(oracle: Oracle, client: Client, where: tuple[str, int], protocol: str = "TCP") -> Answer:
    return oracle.answer(client, *where, protocol)


def chosen(answer: Answer) -> set[str]:
    assert answer.action == Action.FORWARD, answer
    return {address for address, _ in answer.backends}


BOTH = piece(endpoint(HERE), endpoint(ELSEWHERE))
FAR = piece(endpoint(ELSEWHERE))


@pytest.mark.parametrize("client", [POD, HOST, REMOTE, OUTSIDE])
@pytest.mark.parametrize("where", [VIP, *ALL_EXTERNAL])
def test_every_kind_leads_every_client_to_every_endpoint(client: Client, where: tuple[str, int]):
    assert chosen(ask(cluster(service(), BOTH), client, where)) == {HERE, ELSEWHERE}


@pytest.mark.parametrize("where", ALL_EXTERNAL)
def test_external_local_short_circuits_clients_in_the_cluster(where: tuple[str, int]):
    oracle = cluster(service(externalTrafficPolicy="Local"), BOTH)
    assert [chosen(ask(oracle, client, where)) for client in (POD, HOST, REMOTE)] == [{HERE, ELSEWHERE}] * 3
    assert chosen(ask(oracle, OUTSIDE, where)) == {HERE}
    oracle = cluster(service(externalTrafficPolicy="Local"), FAR)
    assert ask(oracle, OUTSIDE, where) == Answer(Action.DROP, "NO_LOCAL_ENDPOINTS")
    assert chosen(ask(oracle, POD, where)) == {ELSEWHERE}


@pytest.mark.parametrize("client", [POD, HOST, OUTSIDE])
def test_internal_local_is_of_the_cluster_ip_only(client: Client):
    oracle = cluster(service(internalTrafficPolicy="Local"), BOTH)
    assert (chosen(ask(oracle, client, VIP)), chosen(ask(oracle, client, LB))) == ({HERE}, {HERE, ELSEWHERE})
    oracle = cluster(service(internalTrafficPolicy="Local"), FAR)
    assert ask(oracle, client, VIP) == Answer(Action.DROP, "NO_LOCAL_ENDPOINTS")
    assert chosen(ask(oracle, client, NODEPORT)) == {ELSEWHERE}


@pytest.mark.parametrize("where", [VIP, *ALL_EXTERNAL])
@pytest.mark.parametrize("conditions", [{"ready": False}, {"ready": False, "serving": False, "terminating": True}])
def test_without_endpoints_it_is_refused_whatever_the_policy(where: tuple[str, int], conditions: dict[str, bool]):
    both = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    oracle = cluster(service(**both), piece(endpoint(HERE, conditions)))
    assert ask(oracle, OUTSIDE, where) == Answer(Action.REJECT, "NO_ENDPOINTS")


def test_terminating_endpoints_serve_while_none_is_ready_for_each_policy_by_itself():
    policy = {"externalTrafficPolicy": "Local"}
    oracle = cluster(service(**policy), piece(endpoint(HERE, TERMINATING), endpoint(ELSEWHERE)))
    assert (chosen(ask(oracle, POD, LB)), chosen(ask(oracle, OUTSIDE, LB))) == ({ELSEWHERE}, {HERE})
    oracle = cluster(service(**policy), piece(endpoint(HERE, TERMINATING), endpoint(ELSEWHERE, TERMINATING)))
    assert (chosen(ask(oracle, POD, LB)), chosen(ask(oracle, OUTSIDE, LB))) == ({HERE, ELSEWHERE}, {HERE})


def test_conditions_that_nobody_set():
    unset = endpoint(HERE, {"ready": None})
    assert chosen(ask(cluster(service(), piece(unset)), POD, VIP)) == {HERE}
    serving = endpoint(HERE, {"ready": False, "terminating": True})  # a nil "serving" is to be taken for true
    assert chosen(ask(cluster(service(), piece(serving)), POD, VIP)) == {HERE}
    published = endpoint(HERE, {"ready": True, "serving": False, "terminating": True})  # publishNotReadyAddresses
    assert chosen(ask(cluster(service(), piece(published, endpoint(ELSEWHERE))), POD, VIP)) == {HERE, ELSEWHERE}


@pytest.mark.parametrize(
    ("hints", "zone", "expected"),
    [
        ([{"zones": "a"}, {"zones": "b"}], "a", {HERE}),
        ([{"zones": "a"}, {"zones": "b"}], "c", {HERE, ELSEWHERE}),  # nobody for us
        ([{"zones": "a"}, {"zones": "b"}], "", {HERE, ELSEWHERE}),  # a node without a zone
        ([{"zones": "a"}, {}], "a", {HERE, ELSEWHERE}),  # not every one has a hint
        ([{"zones": "ab"}, {"zones": "b"}], "b", {HERE, ELSEWHERE}),
        ([{"nodes": ["n0"]}, {"nodes": ["n1"]}], "a", {HERE}),
        ([{"nodes": ["n2"]}, {"nodes": ["n1"]}], "a", {HERE, ELSEWHERE}),
        ([{"nodes": ["n1"], "zones": "b"}, {"nodes": ["n0"], "zones": "a"}], "b", {ELSEWHERE}),  # nodes before zones
        ([{"nodes": ["n1"], "zones": "b"}, {"zones": "a"}], "a", {ELSEWHERE}),
    ],
)
def test_hints(hints: list[Any], zone: str, expected: set[str]):
    both = piece(endpoint(HERE, **hints[0]), endpoint(ELSEWHERE, **hints[1]))
    assert chosen(ask(cluster(service(), both, zone=zone), POD, VIP)) == expected


def test_hints_of_what_is_not_ready_do_not_count():
    both = piece(endpoint(HERE, zones="a"), endpoint(ELSEWHERE, TERMINATING))
    assert chosen(ask(cluster(service(), both), POD, VIP)) == {HERE}


def test_hints_are_not_for_the_local_policy():
    both = piece(endpoint(HERE, zones="b"), endpoint(ELSEWHERE, zones="a"))
    oracle = cluster(service(externalTrafficPolicy="Local"), both)
    assert (chosen(ask(oracle, OUTSIDE, LB)), chosen(ask(oracle, POD, LB))) == ({HERE}, {ELSEWHERE})


def test_who_the_backend_sees():
    answers = [ask(cluster(service(), BOTH), client, LB) for client in (POD, HOST, REMOTE, OUTSIDE)]
    assert [answer.backends[HERE, 8080] for answer in answers] == [
        {client.address} for client in (POD, HOST, REMOTE, OUTSIDE)
    ]
    assert [set(answer.backends[ELSEWHERE, 8080]) for answer in answers] == [
        {POD.address},
        {HOST.address},
        {HOST.address},
        {HOST.address},
    ]


def test_who_a_pod_sees_that_reaches_itself():
    own = Client(Who.POD, HERE)
    answers = [ask(cluster(service(), BOTH), own, where) for where in (VIP, LB, NODEPORT)]
    assert [set(answer.backends[HERE, 8080]) for answer in answers] == [{VIP[0]}, {LB[0]}, {NODEPORT[0]}]


def test_source_ranges_are_for_load_balancer_addresses_and_everybody():
    oracle = cluster(service(loadBalancerSourceRanges=[" 203.0.113.0/24 "]), BOTH)
    assert ask(oracle, OUTSIDE, LB).action == Action.FORWARD
    assert ask(oracle, POD, LB) == Answer(Action.DROP, "SOURCE_RANGE")
    assert [ask(oracle, POD, where).action for where in (VIP, EXTERNAL, NODEPORT)] == [Action.FORWARD] * 3
    assert ask(cluster(service(loadBalancerSourceRanges=["2001:db8::/32"]), BOTH), POD, LB).action == Action.FORWARD
    assert ask(cluster(service(loadBalancerSourceRanges=["192.0.2.0/24"])), OUTSIDE, LB).reason == "SOURCE_RANGE"


def test_ip_mode_proxy_is_not_served():
    modes = [{"ip": LB[0], "ipMode": "Proxy"}, {"ip": "198.51.100.3", "ipMode": "VIP"}, {"hostname": "lb.example"}]
    oracle = cluster(service(ingress=modes), BOTH)
    assert ask(oracle, OUTSIDE, LB).action == Action.PASS
    assert ask(oracle, OUTSIDE, ("198.51.100.3", 80)).action == Action.FORWARD


def test_external_ips_are_served_only_in_their_blocks():
    assert ask(cluster(service(externalIPs=["192.0.2.1"]), BOTH), POD, ("192.0.2.1", 80)).action == Action.PASS
    assert ask(cluster(service(), BOTH, flags=Flags()), POD, EXTERNAL).action == Action.PASS


def test_undefined_ports_and_unallocated_addresses():
    oracle = cluster(service(), BOTH)
    assert ask(oracle, POD, (VIP[0], 81)) == Answer(Action.REJECT, "UNDEFINED_PORT")
    assert ask(oracle, POD, VIP, "UDP") == Answer(Action.REJECT, "UNDEFINED_PORT")
    assert ask(oracle, POD, ("10.96.0.9", 80)) == Answer(Action.DROP, "UNALLOCATED_ADDRESS")
    assert ask(oracle, POD, (LB[0], 81)).action == Action.PASS
    assert ask(oracle, OUTSIDE, ("192.168.0.1", 30081)).action == Action.PASS
    assert ask(cluster(service(), BOTH, flags=Flags()), POD, ("10.96.0.9", 80)).action == Action.PASS


@pytest.mark.parametrize(
    ("blocks", "served"),
    [
        (("primary",), {"192.168.0.1"}),
        ((), {"192.168.0.1", "172.16.0.1"}),
        (("172.16.0.0/12",), {"172.16.0.1"}),
        (("fd00::/8",), {"192.168.0.1", "172.16.0.1"}),  # no block of this family: all
        (("192.0.2.0/24",), set()),
    ],
)
def test_nodeport_addresses(blocks: tuple[str, ...], served: set[str]):
    oracle = Oracle([node(), service(), BOTH], NODE, Flags(blocks), ["172.16.0.1", "127.0.0.1"])
    tried = ("192.168.0.1", "172.16.0.1", "127.0.0.1", "192.168.0.2")
    assert {each for each in tried if ask(oracle, OUTSIDE, (each, 30080)).action != Action.PASS} == served


def test_the_oldest_has_it():
    old = [service("old", "2025-01-01T00:00:00Z"), piece(endpoint(ELSEWHERE), owner="old")]
    oracle = cluster(service(), BOTH, *old)
    assert [chosen(ask(oracle, POD, where)) for where in (VIP, *ALL_EXTERNAL)] == [{ELSEWHERE}] * 4
    named = [service("a-first"), piece(endpoint(ELSEWHERE), owner="a-first")]
    assert chosen(ask(cluster(service(), BOTH, *named), POD, LB)) == {ELSEWHERE}


def test_one_address_with_several_ports_may_be_several_services():
    other = service("other", clusterIPs=["10.96.0.2"], ports=[{"name": "http", "port": 443}], externalIPs=[])
    oracle = cluster(service(), BOTH, other, piece(endpoint(ELSEWHERE), owner="other"))
    assert chosen(ask(oracle, POD, LB)) == {HERE, ELSEWHERE}
    assert chosen(ask(oracle, POD, (LB[0], 443))) == {ELSEWHERE}


@pytest.mark.parametrize(
    ("labels", "spec"),
    [
        ({"service.kubernetes.io/service-proxy-name": ""}, {}),
        ({"service.kubernetes.io/headless": ""}, {}),
        ({}, {"clusterIPs": ["None"], "clusterIP": "None"}),
        ({}, {"type": "ExternalName"}),
        ({}, {"clusterIPs": []}),
    ],
)
@pytest.mark.parametrize("where", [VIP, *ALL_EXTERNAL])
def test_what_is_none_of_ours(labels: dict[str, str], spec: dict[str, Any], where: tuple[str, int]):
    flags = FLAGS._replace(service_cidrs=())
    assert ask(cluster(service(labels=labels, **spec), BOTH, flags=flags), OUTSIDE, where).action == Action.PASS


def test_another_proxys_address_is_allocated():
    oracle = cluster(service(labels={"service.kubernetes.io/service-proxy-name": "mesh"}), BOTH)
    assert ask(oracle, POD, VIP).action == Action.PASS


def test_families_are_apart():
    v6 = piece(endpoint("fd01:0:1::5"), addressType="IPv6")
    oracle = cluster(service(clusterIPs=[VIP[0], "fd96::1"]), BOTH, v6)
    assert chosen(ask(oracle, Client(Who.POD, "fd01::9"), ("fd96::1", 80))) == {"fd01:0:1::5"}
    assert chosen(ask(oracle, Client(Who.OUTSIDE, "2001:db8::1"), ("fd00::1", 30080))) == {"fd01:0:1::5"}
    single = cluster(service(ingress=[{"ip": "2001:db8::2"}]), BOTH, v6)
    for where in (("fd00::1", 30080), ("2001:db8::2", 80)):  # a family without a cluster IP is not served at all
        assert ask(single, Client(Who.OUTSIDE, "2001:db8::1"), where).action == Action.PASS


def test_ports_are_matched_by_name_and_protocol_in_every_slice():
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 80, "protocol": "SCTP"}]
    slices = [
        piece(endpoint(HERE), name="a", port=1000),
        piece(endpoint(ELSEWHERE), name="a", port=2000),
        piece(endpoint(ELSEWHERE), name="a", port=3000, protocol="SCTP"),
        piece(endpoint(HERE), name="b", port=4000, protocol="SCTP"),
    ]
    oracle = cluster(service(ports=ports), *slices)
    assert set(ask(oracle, POD, VIP).backends) == {(HERE, 1000), (ELSEWHERE, 2000)}
    assert set(ask(oracle, POD, VIP, "SCTP").backends) == {(HERE, 4000)}
    assert ask(oracle, POD, VIP, "UDP").reason == "UNDEFINED_PORT"
