"""Beside another CNI plugin: its pods get services, and all else stays as it was."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects
from tests.netns.beside import plugins
from tests.netns.beside.looking import (
    NODES,
    conversation,
    counted,
    half_open,
    manifest,
    tables,
)
from tests.netns.conftest import Wait

NOTIFY = 7000
UDP = (socket.AF_INET, socket.SOCK_DGRAM)


def backend(distance: str, near: str = objects.NEAR_WEB, far: str = objects.FAR_WEB) -> str:
    return {"near": near, "far": far}[distance]


def seen_as(lab: Lab, kind: str, caller: Inside, distance: str, family: int) -> str:
    """Return whom a server sees: the pod, or its node where the plugin masquerades."""
    return lab.node("node-a").of(family) if (kind, distance) == ("ptp", "far") else caller.of(family)


def host(shown: str) -> str:
    return shown.rpartition(":")[0].strip("[]")


# Services


def test_tcp(lab: Lab, caller: Inside, kind: str, distance: str, family: int):
    answer = client.tcp(caller, lab.service(distance).of(family), 80)
    assert answer.pod == f"default/{backend(distance)}"
    assert host(answer.client) == seen_as(lab, kind, caller, distance, family)


def test_large_answer_and_large_request(lab: Lab, caller: Inside, distance: str, family: int):
    answer = client.tcp(caller, lab.service(distance).of(family), 80, b"pad=3000000 " + b"y" * 900_000 + b"\n", 10)
    assert (len(answer.pad), answer.bytes) == (3_000_000, 900_013)


def test_udp_answers_come_from_the_services_address(lab: Lab, caller: Inside, distance: str, family: int):
    address = lab.service(f"{distance}-dns").of(family)
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.sendto(b"x", (address, 53))
        assert sock.recvfrom(2048)[1][:2] == (address, 53)


def test_udp_in_fragments(lab: Lab, caller: Inside, distance: str, family: int):
    answer = client.udp(caller, lab.service(f"{distance}-dns").of(family), 53, b"pad=3000 " + b"y" * 3000)
    assert (len(answer.pad), answer.bytes) == (3000, 3009)


def test_a_pod_reaches_itself(lab: Lab, family: int):
    mirror, dns = lab.pod("mirror"), lab.pod(objects.NEAR_DNS)
    assert client.tcp(mirror, lab.service("mirror").of(family), 80).pod == mirror.name
    assert client.udp(dns, lab.service("mirror-dns").of(family), 53).pod == dns.name


def test_no_endpoints_refuse_at_once(lab: Lab, caller: Inside, family: int):
    for ask, port in ((client.tcp, 80), (client.udp, 53)):
        with pytest.raises(ConnectionRefusedError):
            ask(caller, lab.service("idle").of(family), port)


def test_a_closed_port_refuses(lab: Lab, caller: Inside, distance: str, family: int):
    for ask in (client.tcp, client.udp):
        with pytest.raises(ConnectionRefusedError):
            ask(caller, lab.service(f"{distance}-closed").of(family), 9)


def test_both_ways_between_the_nodes(lab: Lab, family: int):
    answer = client.tcp(lab.pod(objects.FAR_WEB), lab.service("near").of(family), 80)
    assert answer.pod == f"default/{objects.NEAR_WEB}"


def test_pod_and_service_from_one_source_port(lab: Lab, caller: Inside, distance: str, family: int):
    pod = lab.pod(backend(distance, objects.NEAR_DNS, objects.FAR_DNS))
    calls = [(pod.of(family), 5353), (lab.service(f"{distance}-dns").of(family), 53), (pod.of(family), 5353)]
    for order in (calls, calls[1:]):
        with caller.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            seen = []
            for target in order:
                sock.sendto(b"x", target)
                seen.append(sock.recvfrom(2048)[1][:2])
            assert seen == order


def test_a_backend_with_the_nodes_network(lab: Lab, caller: Inside, distance: str, family: int, wait: Wait):
    """What `kubernetes.default` is: endpoints are addresses of nodes."""
    node = lab.node({"near": "node-a", "far": "node-b"}[distance])
    documents = objects.service("api", 240, [("api", "UDP", 443, NOTIFY)], [])
    for each, address in zip(documents[1:], (node.v4, node.v6), strict=True):
        each["endpoints"] = [{"addresses": [address]}]
    with node.socket(family, socket.SOCK_DGRAM) as server, manifest(lab, "api", documents):
        server.bind((node.of(family), NOTIFY))
        server.settimeout(3)
        address = documents[0]["spec"]["clusterIPs"][family == socket.AF_INET6]
        wait(lambda: "api" in tables(lab, "node-a", "service"))
        with caller.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.sendto(b"x", (address, 443))
            server.sendto(b"y", server.recvfrom(100)[1])
            assert sock.recvfrom(100)[1][:2] == (address, 443)


def test_bridged_traffic_past_the_hosts_filters(lab: Lab, kind: str, caller: Inside, family: int, wait: Wait):
    """Whether or not bridged packets are shown to the host's filters, which kube-proxy depends on."""
    if kind != "bridge":
        return
    where = Path("/proc/sys/net/bridge", f"bridge-nf-call-ip{'6' if family == socket.AF_INET6 else ''}tables")
    if not where.exists():
        pytest.skip("needs br_netfilter")
    before = lab.node("node-a").run(where.read_text)
    try:
        for value in ("0", "1"):
            lab.node("node-a").run(where.write_text, value)
            with conversation(lab, caller, "near", family) as ask:
                assert [ask().pod for _ in range(5)] == [f"default/{objects.NEAR_WEB}"] * 5
            # What still says goodbye would be the middle of an unknown connection to whoever begins to look.
            ends = (caller, lab.pod(objects.NEAR_WEB))
            wait(lambda ends=ends: not any(end.run(half_open) for end in ends))  # type: ignore[misc]
    finally:
        lab.node("node-a").run(where.write_text, before)


# What stays as it was


def test_pod_to_pod(lab: Lab, kind: str, caller: Inside, distance: str, family: int):
    pod = lab.pod(backend(distance))
    answer = client.tcp(caller, pod.of(family), 8080)
    assert (answer.pod, host(answer.client)) == (pod.name, seen_as(lab, kind, caller, distance, family))
    hops = {("bridge", "near"): 64, ("ptp", "near"): 63}.get((kind, distance), 62)
    assert f"ttl={hops} " in caller.exec("ping", "-c", "1", "-W", "2", pod.of(family)).stdout


def test_the_node_and_its_pod(lab: Lab, caller: Inside, family: int):
    assert client.tcp(lab.node("node-a"), caller.of(family), 8080).pod == caller.name
    assert ", 0% packet loss" in caller.exec("ping", "-c", "1", "-W", "2", lab.node("node-a").of(family)).stdout


def test_an_address_that_no_pod_object_has(lab: Lab, kind: str, caller: Inside, family: int):
    """The plugin lets it, so we do, and services answer it too."""
    extra = "fd00:10:244:1::200" if family == socket.AF_INET6 else "10.244.1.200"
    bits = "128" if family == socket.AF_INET6 else "32"
    veth = plugins.host_side(next(pod for pod in lab.plan.pods if pod.full_name == caller.name))
    caller.exec("ip", "addr", "add", f"{extra}/{bits}", "dev", "eth0", *(["nodad"] if bits == "128" else []))
    if kind == "ptp":
        lab.node("node-a").exec("ip", "route", "add", f"{extra}/{bits}", "dev", veth)
    try:
        for target, port in ((lab.pod(objects.NEAR_DNS).of(family), 5353), (lab.service("near-dns").of(family), 53)):
            with caller.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(3)
                sock.bind((extra, 0))
                sock.sendto(b"x", (target, port))
                answer, sender = sock.recvfrom(2048)
                assert (host(client.parse(answer).client), sender[:2]) == (extra, (target, port))
    finally:
        caller.exec("ip", "addr", "del", f"{extra}/{bits}", "dev", "eth0")
        lab.node("node-a").exec("ip", "route", "del", f"{extra}/{bits}", "dev", veth)


def test_multicast_broadcast_and_link_local_on_a_bridge(lab: Lab, kind: str, caller: Inside):
    if kind != "bridge":
        return
    listener = lab.pod(objects.NEAR_DNS)
    with listener.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear, caller.socket(*UDP) as mouth:
        ear.settimeout(3)
        ear.bind(("", NOTIFY))
        member = socket.inet_aton("224.0.0.251") + socket.inet_aton(listener.v4)
        ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(caller.v4))
        for target in ("224.0.0.251", "10.244.1.255", "255.255.255.255"):
            if target.startswith("255"):
                mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            mouth.sendto(target.encode(), (target, NOTIFY))
            assert ear.recv(100) == target.encode()
    shown = json.loads(listener.exec("ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "link").stdout)
    local = next(each["local"] for each in shown[0]["addr_info"] if each)
    assert ", 0% packet loss" in caller.exec("ping", "-c", "1", "-W", "2", f"{local}%eth0").stdout


def test_resolution_starts_anew(lab: Lab, caller: Inside, family: int):
    caller.exec("ip", "neigh", "flush", "dev", "eth0")
    assert client.tcp(caller, lab.service("near").of(family), 80).pod == f"default/{objects.NEAR_WEB}"


def test_another_tools_program_at_the_same_hook_sees_every_packet(lab: Lab, caller: Inside, family: int):
    veth = plugins.host_side(next(pod for pod in lab.plan.pods if pod.full_name == caller.name))
    node = lab.node("node-a")
    program = lab.pins("node-a") / "to_network_beside"  # one that counts what it sees
    for direction in ("ingress", "egress"):
        command = f"tc filter add dev {veth} {direction} prio 77 bpf direct-action object-pinned {program}"
        done = node.exec(*command.split())
        assert done.returncode == 0, done.stderr
        try:
            before = counted(lab)
            client.tcp(caller, lab.service("near").of(family), 80)
            assert counted(lab) - before >= 2
        finally:
            node.exec("tc", "filter", "del", "dev", veth, direction, "prio", "77")


def test_conntrack_found_nothing_invalid(lab: Lab, caller: Inside, distance: str, family: int):
    before = [plugins.invalid(lab, node) for node in NODES]
    with conversation(lab, caller, distance, family) as ask:
        for _ in range(20):
            ask()
    assert [plugins.invalid(lab, node) for node in NODES] == before
