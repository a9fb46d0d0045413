"""An agent with --adopt takes over from kube-proxy while connections are open."""

from __future__ import annotations

import socket

from ebpfnet.lab import agents
from ebpfnet.lab.cluster import Lab, silent
from tests.netns import objects
from tests.netns.beside.looking import conversation, deadline, tables
from tests.netns.conftest import Wait


def test_a_connection_outlives_the_rules_that_made_it(bare: Lab, kind: str, family: int, wait: Wait):
    """The last NAT chain of the node goes, too: nothing but our entries can translate the connection then."""
    # The routed plugin masquerades what leaves the node: that stays with the kernel.
    service, pod = {"bridge": ("far", objects.FAR_WEB), "ptp": ("near", objects.NEAR_WEB)}[kind]
    caller, address = bare.pod("client"), bare.service(service).of(family)
    node, plan = bare.node("node-a"), bare.plan.nodes[0]
    word, target = ("ip6", f"[{bare.pod(pod).v6}]") if family == socket.AF_INET6 else ("ip", bare.pod(pod).v4)
    for line in (
        "add table inet kube-proxy",
        "add chain inet kube-proxy pre { type nat hook prerouting priority -100 ; }",
        f"add rule inet kube-proxy pre {word} daddr {address} tcp dport 80 dnat {word} to {target}:8080",
    ):
        assert node.exec("nft", line).returncode == 0
    with conversation(bare, caller, service, family) as ask:
        assert ask().pod == f"default/{pod}"
        options = bare.options.__class__(agents=True, agent_arguments=("--pod-interfaces", "veth*", "--adopt"))
        agents.start(bare.places, plan, options)
        agents.wait_ready(bare.places, bare.plan.__class__(bare.name, "", (plan,)), deadline(), silent)
        wait(lambda: service in tables(bare, "node-a", "flow"))
        for table in ("kube-proxy", "plugin"):
            assert node.exec("nft", f"delete table inet {table}").returncode == 0
        assert ask().pod == f"default/{pod}"
        assert ask().pod == f"default/{pod}"
