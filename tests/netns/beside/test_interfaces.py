"""Beside another CNI plugin: whose interface is whose, agents that come and go, and what they leave."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import yaml

from ebpfnet import abi
from ebpfnet.datapath import interfaces, links
from ebpfnet.datapath.netlink import Changes, Reader
from ebpfnet.lab import agents, client, namespace
from ebpfnet.lab.cluster import Inside, Lab, silent
from tests.netns import objects
from tests.netns.beside import plugins
from tests.netns.beside.looking import (
    NODES,
    addresses,
    conversation,
    deadline,
    filters,
    manifest,
    name,
    served,
    trace,
)
from tests.netns.conftest import Wait

# Whose interface


def test_every_interface_is_known_by_its_addresses(lab: Lab):
    for node in NODES:
        wanted = {plugins.host_side(pod): pod.full_name for pod in lab.plan.pods_of(node) if not pod.host_network}
        assert {each["name"]: each["pod"] for each in served(lab, node)} == wanted


def test_the_hosts_own_tables_say_the_same(lab: Lab, caller: Inside):
    """Where the other end can't be asked."""
    for pod in lab.plan.pods_of("node-a"):
        lab.node("node-a").exec("ping", "-c", "1", "-W", "2", pod.addresses[0])
        lab.node("node-a").exec("ping", "-c", "1", "-W", "2", pod.addresses[1])

    def look() -> list[tuple[links.Behind, links.Behind]]:
        with Reader() as reader:
            found = [link for link in links.links(reader) if link.name.startswith("veth")]
            return [(links.behind(reader, each), links.behind(reader, each._replace(namespace=None))) for each in found]

    pairs = lab.node("node-a").run(look)
    assert len(pairs) == len(lab.plan.pods_of("node-a"))
    assert [a.mac for a, _ in pairs] == [b.mac for _, b in pairs]
    # Neighbours are remembered for a while when an address is gone.
    assert all(set(exact.addresses) <= set(guessed.addresses) for exact, guessed in pairs)
    assert len({address for _, guessed in pairs for address in guessed.addresses}) == sum(
        len(guessed.addresses) for _, guessed in pairs
    )


def test_a_pod_without_an_object_calls_services_too(lab: Lab, caller: Inside, family: int, wait: Wait):
    """A pod's address reaches its object seconds after it has begun to talk."""
    path = lab.manifests / "pods.yaml"
    original = path.read_text()
    try:
        with conversation(lab, caller, "near", family) as ask:
            ask()
            path.write_text(yaml.safe_dump_all(d for d in yaml.safe_load_all(original) if name(d) != "client"))
            wait(lambda: "default/client" not in {each["pod"] for each in served(lab, "node-a")})
            assert ask().pod == f"default/{objects.NEAR_WEB}"
            assert client.udp(caller, lab.service("near-dns").of(family), 53).pod == f"default/{objects.NEAR_DNS}"
            with conversation(lab, caller, "far", family) as early:
                early()
                path.write_text(original)
                wait(lambda: "default/client" in {each["pod"] for each in served(lab, "node-a")})
                assert (ask().pod, early().pod) == (f"default/{objects.NEAR_WEB}", f"default/{objects.FAR_WEB}")
    finally:
        path.write_text(original)
        lab.wait_synced()


def test_a_pod_comes_and_goes(lab: Lab, caller: Inside, family: int, wait: Wait):
    documents: list[dict[str, Any]] = [objects.pod("late", 1, 77), objects.pod("later", 2, 78)]
    service = objects.service("fresh", 230, [("http", "TCP", 80, 8080)], [objects.NEAR_WEB])
    for each, index in ((service[1], 0), (service[2], 1)):
        each["endpoints"] = [{"addresses": [pod["status"]["podIPs"][index]["ip"]]} for pod in documents]
    address = service[0]["spec"]["clusterIPs"][family == socket.AF_INET6]
    with manifest(lab, "late", [*documents, *service]):
        lab.sync()
        wait(lambda: {client.tcp(caller, address, 80).pod for _ in range(9)} == {"default/late", "default/later"})
        answer = client.tcp(lab.pod("late"), lab.service("near").of(family), 80)
        assert answer.pod == f"default/{objects.NEAR_WEB}"
        known = len(served(lab, "node-a"))
    lab.sync()
    wait(lambda: len(served(lab, "node-a")) == known - 1)


def test_lost_events_lose_nothing(lab_name: str, wait: Wait):
    """With room for hardly an event, interfaces and addresses that come by the hundred are found all the same."""
    here, there = f"ebn-{lab_name}-here", f"ebn-{lab_name}-there"
    heard: list[list[interfaces.Interface]] = [[]]
    stop = threading.Event()
    lost: list[int] = []

    class Deaf(Changes):
        def wait(self, timeout_s: float) -> bool:
            found = super().wait(timeout_s)
            lost[:] = [self.lost]
            return found

    def make(numbers: range) -> None:
        lines = [f"link add veth{n} type veth peer name p{n} netns {there}" for n in numbers]
        subprocess.run(["ip", "-n", here, "-b", "-"], input="\n".join(lines), text=True, check=True)
        lines = [f"addr add 10.1.0.{n}/32 dev p{n}" for n in numbers]
        subprocess.run(["ip", "-n", there, "-b", "-"], input="\n".join(lines), text=True, check=True)

    follower = threading.Thread(
        target=lambda: namespace.run(
            here, lambda: interfaces.follow(heard.append, stop, interfaces.Chosen(("veth*",)), buffer_bytes=1)
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interfaces, "Changes", Deaf)
        namespace.create(here)
        namespace.create(there)
        try:
            follower.start()
            for start in range(1, 101, 20):
                make(range(start, start + 20))
            wait(lambda: len([each for each in heard[-1] if each.addresses]) == 100)
            subprocess.run(["ip", "-n", here, "link", "del", "veth7"], check=True)
            wait(lambda: len(heard[-1]) == 99)
            assert lost > [0]
        finally:
            stop.set()
            follower.join()
            namespace.remove(here)
            namespace.remove(there)


def test_a_late_address_in_the_pods_own_namespace_is_heard_of(lab: Lab, caller: Inside, wait: Wait):
    caller.exec("ip", "addr", "add", "10.244.1.201/32", "dev", "eth0")
    try:
        wait(lambda: "10.244.1.201" in addresses(lab, "node-a", "default/client"))
    finally:
        caller.exec("ip", "addr", "del", "10.244.1.201/32", "dev", "eth0")
    wait(lambda: "10.244.1.201" not in addresses(lab, "node-a", "default/client"))


# The agent comes and goes


def test_a_restart_keeps_connections_and_programs(lab: Lab, caller: Inside, distance: str, family: int):
    with conversation(lab, caller, distance, family) as ask:
        first = ask().pod
        before = {node: filters(lab, node) for node in NODES}
        for node in NODES:
            lab.kill_agent(node)
        assert ask().pod == first
        for node in NODES:
            lab.start_agent(node)
        lab.wait_synced()
        assert ask().pod == first
        assert {node: filters(lab, node) for node in NODES} == before
    assert len(before["node-a"]) == 2 * len(lab.plan.pods_of("node-a")) + 2 + 1  # wires, uplink, loopback


def test_connections_from_before_go_on_and_cleanup_leaves_no_trace(bare: Lab, family: int):
    """kube-proxy's work is an nft rule here; it goes away, its connections stay in conntrack."""
    caller, address = bare.pod("client"), bare.service("far").of(family)
    word = "ip6" if family == socket.AF_INET6 else "ip"
    target = bare.pod(objects.FAR_WEB).of(family)
    target = f"[{target}]" if family == socket.AF_INET6 else target
    node = bare.node("node-a")
    for line in (
        "add table inet proxy",
        "add chain inet proxy pre { type nat hook prerouting priority -100 ; }",
        f"add rule inet proxy pre {word} daddr {address} tcp dport 80 dnat {word} to {target}:8080",
    ):
        assert node.exec("nft", line).returncode == 0
    with conversation(bare, caller, "far", family) as ask:
        ask()
        node.exec("nft", "delete table inet proxy")
        before = {each: trace(bare.node(each)) for each in NODES}
        for each in NODES:
            bare.start_agent(each)
        bare.wait_synced()
        assert ask().pod == f"default/{objects.FAR_WEB}"
        assert client.tcp(caller, address, 80).pod == f"default/{objects.FAR_WEB}"
        assert {each: trace(bare.node(each)) for each in NODES} != before
        agents.stop(bare.places, NODES)
        for each in NODES:
            place = ("--pins", str(bare.pins(each)), "--run", str(bare.places.run(each)))
            done = bare.node(each).exec(sys.executable, "-m", "ebpfnet", "cleanup", *place)
            assert "removed from_pod_beside, to_pod_beside from veth" in done.stdout, done.stderr
            assert not bare.pins(each).exists()
        assert {each: trace(bare.node(each)) for each in NODES} == before
        assert ask().pod == f"default/{objects.FAR_WEB}"


def test_patterns_that_are_taken_back(bare: Lab, family: int):
    """An agent without them takes its programs off the interfaces that nobody serves now, and out of the kernel."""
    bare.start_agent("node-a")
    bare.start_agent("node-b")
    bare.wait_synced()
    assert pinned_programs(bare) == {*abi.PROGRAMS} - {"to_network", *abi.SOCKET_PROGRAMS}
    bare.kill_agent("node-a")
    node = bare.plan.nodes[0]
    options = bare.options.__class__(agents=True)
    agents.start(bare.places, node, options)
    agents.wait_ready(bare.places, bare.plan.__class__(bare.name, "", (node,)), deadline(), silent)
    assert [each for each in filters(bare, "node-a") if "beside" in each] == []
    assert pinned_programs(bare) == {"from_pod", "to_pod", "from_network", "to_network", "from_host"}


def pinned_programs(lab: Lab) -> set[str]:
    """Return the programs that the agent of node-a has pinned."""
    return {path.name for path in lab.pins("node-a").iterdir()} & set(abi.PROGRAMS)
