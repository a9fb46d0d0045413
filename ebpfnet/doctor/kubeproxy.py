"""kube-proxy and what it leaves behind: rules that still take connections, although nobody keeps them up to date.

Sources, kubernetes: CleanupLeftovers of pkg/proxy/iptables/proxier.go and pkg/proxy/ipvs/proxier.go (names of chains
and of the interface), pkg/proxy/nftables/proxier.go (name of the table). KUBE-MARK-MASQ, KUBE-FIREWALL and
KUBE-KUBELET-CANARY are the kubelet's too and stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ebpfnet.datapath.nftables import Chain
from ebpfnet.doctor.finding import Finding, Level

CHECK = "kube-proxy"
TABLE = "kube-proxy"
CLEANUP = "kube-proxy --cleanup"
"""As root on the node, or in kube-proxy's own image with the host's network; it removes all of these at once."""

CHAIN = (
    "KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|FORWARD|PROXY-FIREWALL|PROXY-CANARY"
    "|NODE-PORT|LOAD-BALANCER|IPVS-FILTER|IPVS-OUT-FILTER|SOURCE-RANGES-FIREWALL|(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z0-9]+)"
)
_CHAIN = re.compile(CHAIN)
_IN_RULE = re.compile(f"{CHAIN}( |$)")
IPTABLES_TABLES = {"filter", "nat", "mangle", "raw"}
COMMANDS = {"ip": "iptables-nft", "ip6": "ip6tables-nft"}


def in_iptables(tool: str, saved: str) -> list[Finding]:
    """Look at what ``TOOL-save`` printed."""
    rules = sum(1 for line in saved.splitlines() if line.startswith("-") and _IN_RULE.search(line))
    chains = sum(1 for line in saved.splitlines() if line.startswith(":") and _IN_RULE.search(line))
    if not rules and not chains:
        return []
    text = f"{tool} has {chains} chains and {rules} rules of kube-proxy: they take what no program of ours does"
    return [Finding(CHECK, Level.WARNING, text, _without(tool))]


def in_nftables(chains: Iterable[Chain]) -> list[Finding]:
    """Look at the names of nf_tables' tables and chains, iptables-nft's among them."""
    chains = list(chains)
    found = []
    for family in sorted({each.family for each in chains}):
        here = [each for each in chains if each.family == family]
        if any(each.table == TABLE for each in here):
            text = f"the nftables table {family} {TABLE} is there: it takes what no program of ours does"
            found.append(Finding(CHECK, Level.WARNING, text, f"nft delete table {family} {TABLE}"))
        old = [each for each in here if each.table in IPTABLES_TABLES and _CHAIN.fullmatch(each.name)]
        if old:
            tool = COMMANDS[family]
            text = f"{tool} has {len(old)} chains of kube-proxy: they take what no program of ours does"
            found.append(Finding(CHECK, Level.WARNING, text, _without(tool)))
    return found


def _without(tool: str) -> str:
    """Return the command that removes kube-proxy's chains and every rule that leads there, each table at once."""
    return f"{tool}-save | grep -vE '{CHAIN}( |$)' | {tool}-restore"


def in_ipvs(listed: str, interfaces: Collection[str]) -> list[Finding]:
    """Look at /proc/net/ip_vs and the names of interfaces."""
    found = []
    services = sum(1 for line in listed.splitlines() if line.startswith(("TCP ", "UDP ", "SCTP ")))
    if services:
        text = f"IPVS has {services} virtual services: packets to their addresses go to it"
        found.append(
            Finding(CHECK, Level.WARNING, text, f"{CLEANUP}, or if all of them are kube-proxy's: ipvsadm --clear")
        )
    if "kube-ipvs0" in interfaces:
        text = "the interface kube-ipvs0 is there: the node takes services' addresses for its own"
        found.append(Finding(CHECK, Level.WARNING, text, "ip link delete kube-ipvs0"))
    return found


def running(processes: Collection[tuple[int, str]]) -> list[Finding]:
    """Look at (pid, name) of processes."""
    text = "kube-proxy runs (pid {}): it writes its rules again, and both answer health checks at one port"
    command = "kubectl -n kube-system delete daemonset kube-proxy"
    return [
        Finding(CHECK, Level.WARNING, text.format(pid), command) for pid, name in sorted(processes) if name == TABLE
    ]
