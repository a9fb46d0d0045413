"""Policies as the tables have them: groups of pods, classes of peers, rules and their ports, and what they decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ebpfnet import abi
from ebpfnet.abi import Direction, Verdict
from ebpfnet.cli.lookup import Lookup
from ebpfnet.maps.dump import block_name, protocol_name
from ebpfnet.maps.hits import Hit, direction_of, hits, policies_by, policies_of, rule_of
from ebpfnet.maps.judge import EVERYBODY

_BITS = 16
_ALL = (0, 65535)
_SOME = 3


class Decides(NamedTuple):
    """An entry: what is decided for a group about a class. ``ports`` None: everything that has no entry of its own."""

    group: int
    peers: int
    direction: Direction
    ports: tuple[tuple[int, int, int], ...] | None  # protocol, first, last
    rule: abi.Rule


class Rules:
    """One node's policies; every table is read once, when it is first needed."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.tables = tables
        self.lookup = Lookup(tables)

    @cached_property
    def groups(self) -> dict[int, dict[bytes, str]]:
        """Pods by address, by group; those that no policy selects are left out."""
        found: dict[int, dict[bytes, str]] = {}
        for key, value in self.tables["pods"].items():
            pod = abi.Pod.unpack(value)
            if pod.group:
                found.setdefault(pod.group, {})[key] = self.lookup.pods.get(key, "?")
        return found

    @cached_property
    def classes(self) -> dict[int, list[str]]:
        """Addresses and blocks by class."""
        found: dict[int, list[str]] = {}
        for key, value in self.tables["peers"].items():
            pod = self.lookup.pods.get(key, "")
            text = f"{abi.unpack_address(key)} ({pod})" if pod else str(abi.unpack_address(key))
            found.setdefault(int.from_bytes(value, "little"), []).append(text)
        for key, value in self.tables["peer_blocks"].items():
            found.setdefault(int.from_bytes(value, "little"), []).append(block_name(*abi.Block.layout.unpack(key)))
        return {number: sorted(addresses) for number, addresses in found.items()}

    @cached_property
    def hits(self) -> dict[int, Hit]:
        """What each rule decided."""
        return {each.rule: each for each in hits(self.tables["rule_hits"])}

    @cached_property
    def _ports(self) -> dict[int, list[tuple[abi.PortRange, abi.Rule]]]:
        found: dict[int, list[tuple[abi.PortRange, abi.Rule]]] = {}
        for key, value in self.tables["rule_ports"].items():
            entry = abi.PortRange.unpack(key)
            found.setdefault(entry.ports, []).append((entry, abi.Rule.unpack(value)))
        return found

    @cached_property
    def entries(self) -> list[Decides]:
        """All that is decided, sorted: by group, direction, class, and ports last."""
        found = []
        for key, value in self.tables["rules"].items():
            group, peers, direction = abi.RuleKey.layout.unpack(key)
            if group not in self.groups:
                continue  # what is left of one that pods had a moment ago
            rule, way = abi.Rule.unpack(value), Direction(direction)
            found.append(Decides(group, peers, way, None, rule))
            by_rule: dict[abi.Rule, list[tuple[int, int, int]]] = {}
            for entry, each in self._ports.get(rule.ports, ()) if rule.ports else ():
                last = entry.port + (1 << (_BITS - entry.length)) - 1
                by_rule.setdefault(each, []).append((entry.protocol, entry.port, last))
            found += [Decides(group, peers, way, _joined(ranges), each) for each, ranges in by_rule.items()]
        return sorted(found, key=lambda each: (each.group, each.direction, each.peers, each.ports or (), each.rule.id))

    @cached_property
    def by_policy(self) -> dict[str, list[Decides]]:
        """What each policy decides, by ``KIND [NAMESPACE/]NAME``; default denies count for all that isolate."""
        found: dict[str, list[Decides]] = {}
        for each in self.entries:
            for policy in policies_by(each.rule.id, self.name):
                found.setdefault(policy, []).append(each)
        return found

    def name(self, rule: int) -> str:
        """Return a rule's name; empty for what no policy speaks of."""
        return self.lookup.name(rule) if rule else ""

    def isolation(self, group: int) -> list[str]:
        """Return the directions in which a NetworkPolicy isolates a group; ``(audited)``: only audited ones do."""
        ways = ((way.name.lower(), self._isolated.get((group, way))) for way in Direction)
        return [word if enforced else f"{word} (audited)" for word, enforced in ways if enforced is not None]

    @cached_property
    def _isolated(self) -> dict[tuple[int, Direction], bool]:
        """Groups and directions, and whether that is enforced."""
        found: dict[tuple[int, Direction], bool] = {}
        for each in self.entries:
            if any(policy.startswith("NetworkPolicy ") for policy in policies_of(self.name(each.rule.id))):
                way = each.group, each.direction
                found[way] = found.get(way, False) or each.rule.verdict != Verdict.AUDIT
        return found

    def policies_of(self, group: int) -> list[str]:
        """Return the policies that decide about a group, as ``KIND [NAMESPACE/]NAME``."""
        return sorted(policy for policy, entries in self.by_policy.items() if any(e.group == group for e in entries))

    def pods_of(self, entries: Iterable[Decides]) -> list[str]:
        """Return the pods that entries are about, each once."""
        return sorted({pod for each in entries for pod in self.groups.get(each.group, {}).values()})

    def peers(self, number: int, most: int = 3) -> dict[str, Any]:
        """Describe a class: how many addresses it has, and some of them."""
        if number == EVERYBODY:
            return {"class": EVERYBODY, "addresses": None, "some": ["everybody else"]}
        known = self.classes.get(number, [])
        return {"class": number, "addresses": len(known), "some": known[:most]}

    def row(self, policy: str) -> dict[str, Any]:
        """Return what the tables say of a policy."""
        entries = self.by_policy.get(policy, [])
        ids = {each.rule.id for each in entries}
        counted = [self.hits[rule] for rule in ids if rule in self.hits]
        denies = [each for each in entries if each.rule.verdict == Verdict.DENY]
        audits = any(each.rule.verdict == Verdict.AUDIT for each in entries)
        kind, _, name = policy.partition(" ")
        left = bool(denies) and all(each.rule.flags & abi.RuleFlag.GRACEFUL for each in denies)
        return {
            "policy": name,
            "kind": kind,
            "pods": len(self.pods_of(entries)),
            "directions": sorted({direction_of(self.name(rule)) for rule in ids}, reverse=True),
            "rules": sum(bool(rule_of(self.name(rule))) for rule in ids),
            "mode": "audit" if audits else "enforce",
            "established": "graceful" if left else "strict" if denies else None,
            "allowed": sum(each.allowed for each in counted),
            "denied": sum(each.denied for each in counted),
            "audited": sum(each.audited for each in counted),
        }

    def details(self, policy: str) -> Iterator[dict[str, Any]]:
        """Yield what a policy's rules decide: one row for each rule, ports, verdict and group, with its classes."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for each in self.by_policy.get(policy, ()):
            rule = each.rule
            ports = show_ports(each.ports) if each.ports or not rule.ports else ["any other"]
            key = (each.direction, rule.id, tuple(ports), rule.verdict, rule.flags, each.group)
            found.setdefault(key, []).append(each.peers)
        for (way, rule_id, ports, verdict, flags, group), numbers in found.items():
            hit = self.hits.get(rule_id, Hit(rule_id, 0, 0, 0))
            yield {
                "rule": self.name(rule_id),
                "id": f"{rule_id:016x}",
                "policies": list(policies_by(rule_id, self.name)),
                "direction": way.name.lower(),
                "verdict": verdict.name.lower(),
                "ports": list(ports),
                "graceful": bool(flags & abi.RuleFlag.GRACEFUL),
                "group": f"{group:016x}",
                "peers": [self.peers(number) for number in sorted(numbers)],
                "allowed": hit.allowed,
                "denied": hit.denied,
                "audited": hit.audited,
            }


def say_classes(found: Sequence[dict[str, Any]]) -> str:
    """Return several classes in a few words, as if they were one."""
    known = [each for each in found if each["addresses"] is not None]
    texts = ["everybody else"] if len(known) < len(found) else []
    if known:
        first = [address for each in known for address in each["some"]][:_SOME]
        more = sum(each["addresses"] for each in known) - len(first)
        listed = ", ".join(first) + (f" and {more} more" if more > 0 else "")
        numbers = some([str(each["class"]) for each in known])
        texts.append(f"{'class' if len(known) == 1 else 'classes'} {numbers}: {listed or 'nobody now'}")
    return "; ".join(texts)


def some(listed: Sequence[str]) -> str:
    """Return a few of many names, and how many more there are."""
    more = f" and {len(listed) - _SOME} more" if len(listed) > _SOME else ""
    return ", ".join(listed[:_SOME]) + more


def _joined(ranges: list[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Put prefixes that follow each other together."""
    found: list[tuple[int, int, int]] = []
    for protocol, first, last in sorted(ranges):
        if found and found[-1][0] == protocol and found[-1][2] + 1 == first:
            found[-1] = (protocol, found[-1][1], last)
        else:
            found.append((protocol, first, last))
    return tuple(found)


def show_ports(ports: tuple[tuple[int, int, int], ...] | None) -> list[str]:
    """Return ports as people write them; what has no ports of its own is ``any``."""
    if ports is None:
        return ["any"]
    return [
        protocol_name(protocol)
        + ("" if (first, last) == _ALL else f" {first}" if first == last else f" {first}-{last}")
        for protocol, first, last in ports
    ]
