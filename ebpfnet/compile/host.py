"""What this node itself is to services, to table entries; pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ebpfnet import abi
from ebpfnet.abi import BlockKind, Mark
from ebpfnet.model.facts import IPAddress, IPNetwork
from ebpfnet.model.host import Host

NODE_KEY = bytes(4)


def mark_key(address: bytes) -> bytes:
    """Return the key in ``services`` that says what a packed address is."""
    return abi.Frontend(address, 0, 0).pack()


def compile_marks(host: Host) -> dict[bytes, int]:
    """Return packed address to marks, of the node's own addresses."""
    marks = dict.fromkeys(map(abi.pack_address, host.addresses), int(Mark.OWN))
    for address in map(abi.pack_address, host.nodeport_addresses):
        marks[address] = marks.get(address, 0) | Mark.NODEPORTS
    return marks


def compile_node(host: Host) -> bytes:
    """Return the value of ``node``."""
    ipv4, ipv6 = (_first(host.sources, version) for version in (4, 6))
    return abi.Node(ipv4, ipv6, *host.source_ports).pack()


def _first(addresses: Iterable[IPAddress], version: int) -> bytes:
    return next((abi.pack_address(each) for each in addresses if each.version == version), bytes(16))


def compile_blocks(
    host: Host, pod_cidrs: Iterable[IPNetwork], service_cidrs: Iterable[IPNetwork]
) -> dict[bytes, bytes]:
    """Return the entries of ``blocks``: what the host's flags say, and what nodes and ServiceCIDRs do.

    Blocks that are side by side become one: nodes get theirs one after the other.
    """
    services, pods = (*host.service_cidrs, *service_cidrs), (*host.pod_cidrs, *pod_cidrs)
    kinds = (BlockKind.SERVICES, services), (BlockKind.PODS, pods)
    return {key: int(kind).to_bytes(4, "little") for kind, blocks in kinds for key in _collapsed(blocks)}


def _collapsed(blocks: Iterable[IPNetwork]) -> list[bytes]:
    every = list(blocks)
    v4 = ipaddress.collapse_addresses(each for each in every if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in every if isinstance(each, ipaddress.IPv6Network))
    found: list[IPNetwork] = [*v4, *v6]
    return [
        abi.Block(each.prefixlen + (96 if each.version == 4 else 0), abi.pack_address(each.network_address)).pack()
        for each in found
    ]
