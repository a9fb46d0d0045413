"""Pods wired the way other CNI plugins do it, in a lab whose nodes, agents and echo servers are the lab's own.

``bridge``: a bridge with the gateway's address, host sides its ports, a common prefix, hairpin off (the reference
plugin). ``ptp``: a routed veth each, the gateway's address on every host side, a host route to the pod; here with
masquerading of what leaves the node's own block, as ``ipMasq`` does. Nothing marks an interface. Nodes check the way
back (``rp_filter``), announce better ways (redirects), and drop what conntrack finds invalid.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from ebpfnet.lab import namespace, wires
from ebpfnet.lab.cluster import Lab, down
from ebpfnet.lab.topology import NodePlan, Plan, PodPlan

PATTERN = "veth*"
BRIDGE = "cni0"
BRIDGE_MAC = "02:eb:00:00:00:01"  # else it is the lowest of its ports', and changes as they come and go
RULES = """
add table inet plugin
add chain inet plugin forward {{ type filter hook forward priority 0 ; }}
add rule inet plugin forward ct state invalid counter drop
add chain inet plugin leaving {{ type nat hook postrouting priority 100 ; }}
"""
MASQUERADE = """
add rule inet plugin leaving ip saddr {0} ip daddr != {{ {0}, 224.0.0.0/4 }} masquerade
add rule inet plugin leaving ip6 saddr {1} ip6 daddr != {{ {1}, ff00::/8 }} masquerade
"""
Build = Callable[[Plan, PodPlan], None]


def host_side(pod: PodPlan) -> str:
    """Return the name of a pod's interface on its node."""
    return "veth" + hashlib.blake2b(pod.full_name.encode(), digest_size=4).hexdigest()


@contextlib.contextmanager
def lab(name: str, manifests: Path, kind: str, *, agents: bool = True, timeout: float = 60.0) -> Iterator[Lab]:
    """Bring up a lab whose pods a plugin wires, and asks no agent when; ``sync`` wires new ones in the same way."""
    with mock.patch.multiple(wires, build_pod={"bridge": bridge, "ptp": ptp}[kind], open_pod=lambda _: None):
        try:
            arguments = ("--pod-interfaces", PATTERN, "--log-level", "debug")
            yield Lab.up(name, manifests, agents=agents, agent_arguments=arguments, timeout=timeout)
        finally:
            down(name)


def bridge(plan: Plan, pod: PodPlan) -> None:
    """Do what the bridge plugin does at ADD."""
    node = _begin(plan, pod, "")
    if node is None:
        return
    gateways = _gateways(node)
    if BRIDGE not in _ip(node.netns, "-br link show"):
        _batch(
            node.netns,
            f"link add {BRIDGE} address {BRIDGE_MAC} type bridge",
            *(f"addr add {gateway} dev {BRIDGE} nodad" for gateway in gateways),
            f"link set {BRIDGE} up",
        )
    _plug(node, pod)
    _batch(node.netns, f"link set {host_side(pod)} master {BRIDGE} up")
    _batch(
        pod.netns,
        *(f"addr add {address}/{_length(address)} dev eth0 nodad" for address in pod.addresses),
        *(f"route add default via {_bare(gateway)} dev eth0" for gateway in gateways),
    )


def ptp(plan: Plan, pod: PodPlan) -> None:
    """Do what the ptp plugin does at ADD."""
    blocks = plan.node(pod.node)
    node = _begin(plan, pod, MASQUERADE.format(*blocks.pod_cidrs) if blocks else "")
    if node is None:
        return
    gateways = [_bare(each) for each in _gateways(node)]
    _plug(node, pod)
    for gateway in gateways:
        bits = ipaddress.ip_address(gateway).max_prefixlen
        _batch(node.netns, f"addr add {gateway}/{bits} dev {host_side(pod)} nodad")
    _batch(node.netns, f"link set {host_side(pod)} up")
    for address, gateway in zip(pod.addresses, gateways, strict=True):
        bits = ipaddress.ip_address(address).max_prefixlen
        _batch(node.netns, f"route add {address}/{bits} dev {host_side(pod)}")
        _batch(
            pod.netns,
            f"addr add {address}/{bits} dev eth0 nodad",
            f"route add {gateway}/{bits} dev eth0",
            f"route add default via {gateway} dev eth0",
        )


def invalid(lab: Lab, node: str) -> int:
    """Return how many packets a node's conntrack found invalid."""
    shown = lab.node(node).exec("nft", "list", "chain", "inet", "plugin", "forward").stdout
    return int(shown.split("packets ")[1].split()[0])


def _begin(plan: Plan, pod: PodPlan, more: str) -> NodePlan | None:
    """Make the pod's namespace, and on a node's first pod what an administrator did long ago."""
    node = plan.node(pod.node)
    if pod.host_network or node is None:
        return None
    namespace.create(pod.netns)
    _batch(pod.netns, "link set lo up")
    if "plugin" not in _run("nsenter", f"--net={namespace.path(node.netns)}", "nft", "list", "tables"):
        nft = ["nsenter", f"--net={namespace.path(node.netns)}", "nft", "-f", "-"]
        subprocess.run(nft, input=RULES.format() + more, text=True, check=True, capture_output=True)
        namespace.run(node.netns, _strict)
    return node


def _strict() -> None:
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
        Path(f"/proc/sys/net/ipv4/conf/{name}/send_redirects").write_text("1")


def _plug(node: NodePlan, pod: PodPlan) -> None:
    """Make the pair from inside the pod, as plugins do: the host's side moves out."""
    host = namespace.path(node.netns)
    _batch(pod.netns, f"link add eth0 type veth peer name {host_side(pod)} netns {host}", "link set eth0 up")


def _gateways(node: NodePlan) -> list[str]:
    blocks = [ipaddress.ip_network(block) for block in node.pod_cidrs]
    return [f"{block.network_address + 1}/{block.prefixlen}" for block in blocks]


def _length(address: str) -> int:
    return 64 if ":" in address else 24


def _bare(address: str) -> str:
    return address.split("/", maxsplit=1)[0]


def _batch(netns: str, *lines: str) -> None:
    for line in lines:
        _ip(netns, line)


def _ip(netns: str, line: str) -> str:
    return _run("ip", "-n", netns, *line.split())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
