"""What the tables of policies hold, as lines that do not tell which numbers classes happened to get.

A class is named by its members: the addresses and blocks that are in it, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.maps import dump
from ebpfnet.maps.table import Table

WORDS = {abi.Direction.INGRESS: "ingress", abi.Direction.EGRESS: "egress"}


def lines(tables: Mapping[str, Table]) -> list[str]:
    """Return a line for each class, pod with a group, rule, and range of ports."""
    names = {int.from_bytes(key, "little"): abi.unpack_name(value) for key, value, *_ in tables["names"].items()}
    classes = _classes(tables)
    pods: dict[int, list[str]] = {}
    for _, value, *_ in tables["pods"].items():
        pod = abi.Pod.unpack(value)
        if pod.group:
            pods.setdefault(pod.group, []).append(names[pod.id])
    groups = {group: ",".join(sorted(set(found))) for group, found in pods.items()}
    found = [f"CLASS {label}" for number, label in classes.items() if number]
    ranges: dict[int, list[str]] = {}
    for key, value, *_ in tables["rule_ports"].items():
        each = abi.PortRange.unpack(key)
        last = each.port | (0xFFFF >> each.length)
        text = f"{dump.protocol_name(each.protocol)} {each.port}-{last} {_said(abi.Rule.unpack(value), names)}"
        ranges.setdefault(each.ports, []).append(text)
    for key, value, *_ in tables["rules"].items():
        place, rule = abi.RuleKey.unpack(key), abi.Rule.unpack(value)
        direction = WORDS[abi.Direction(place.direction)]
        head = f"RULE {groups.get(place.group, '?')} {direction} {classes.get(place.peers, '?')}"
        found.append(f"{head}: {_said(rule, names)}")
        found += [f"{head}: {each}" for each in ranges.get(rule.ports, ())]
    return sorted(found)


def _classes(tables: Mapping[str, Table]) -> dict[int, str]:
    members: dict[int, list[str]] = {}
    for number, label in _members(tables):
        members.setdefault(number, []).append(label)
    return {number: "+".join(sorted(labels)) for number, labels in members.items()} | {0: "everybody"}


def _members(tables: Mapping[str, Table]) -> Iterator[tuple[int, str]]:
    for key, value, *_ in tables["peers"].items():
        yield int.from_bytes(value, "little"), str(abi.unpack_address(key))
    for key, value, *_ in tables["peer_blocks"].items():
        block = abi.Block.unpack(key)
        yield int.from_bytes(value, "little"), dump.block_name(block.prefix_length, block.address)


def _said(rule: abi.Rule, names: Mapping[int, str]) -> str:
    flags = " (graceful)" if rule.flags & abi.RuleFlag.GRACEFUL else ""
    return f"{abi.Verdict(rule.verdict).name}{flags} by {names[rule.id] if rule.id else 'nobody'}"
