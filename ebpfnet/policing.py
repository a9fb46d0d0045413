"""What an agent tells of policies on its socket: which it enforces, and the facts that they are judged by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from ebpfnet import status
from ebpfnet.abi import Direction
from ebpfnet.compile.policy.phrases import peer_path, say_everybody, say_peer, say_ports, say_subject
from ebpfnet.compile.policy.statements import rules_of, statements_of
from ebpfnet.model.facts import Fact, NetworkPolicy, Peer, Pod, Policy, Problem, Ref, Upsert
from ebpfnet.model.facts import Kind as KindOf
from ebpfnet.model.peers import Likeness
from ebpfnet.model.plain import from_plain, to_plain
from ebpfnet.reconcile.reconciler import Reconciler

_WAYS = tuple(Direction)


def answers(lock: threading.Lock, reconciler: Reconciler, graceful: bool) -> status.Answers:  # noqa: FBT001
    """Return what may be asked for; ``lock`` is whose holder may look at the reconciler."""

    def tell_policies() -> dict[str, Any]:
        with lock:
            seen = look(reconciler)
        return policies(seen, graceful=graceful)

    def tell_facts() -> dict[str, Any]:
        with lock:
            held = hold(reconciler)
        return facts(held, graceful=graceful)

    def tell_citation(*, group: int, direction: int, peers: int, rule: int, protocol: int, port: int) -> dict[str, Any]:
        with lock:
            found = reconciler.policies.regimes.cite(group, Direction(direction), peers, rule, protocol, port)
        return {"citation": found and found.document()}

    return {"policies": tell_policies, "facts": tell_facts, "citation": tell_citation}


class Seen(NamedTuple):
    """What there is to tell of policies at one moment. ``late``: those that are not enforced."""

    node: str
    synced: bool
    known: dict[Ref, Policy]
    pods: dict[Ref, list[Ref]]
    late: set[Ref]
    problems: list[Problem]


def look(reconciler: Reconciler) -> Seen:
    """Take down what there is to tell of policies; quickly, for nothing else happens meanwhile, and many may wait."""
    cluster, of = reconciler.cluster, reconciler.policies
    known: dict[Ref, Policy] = {**cluster.policies, **cluster.cluster_policies}
    late = of.behind() | {each.ref for each in of.problems}
    return Seen(cluster.node, reconciler.synced, known, of.subjects.selected(), late, reconciler.problems)


def policies(seen: Seen, *, graceful: bool) -> dict[str, Any]:
    """Return every policy that is known, those that select no pod of this node, too; ``graceful``: the agent's flag."""
    problems: dict[Ref, list[str]] = {}
    for each in seen.problems:
        if each.ref.kind in {KindOf.NETWORK_POLICY, KindOf.CLUSTER_NETWORK_POLICY}:
            text = ": ".join(part for part in (each.field, each.reason) if part)
            problems.setdefault(each.ref, []).append(text)
    listed = [_policy(seen, ref, problems.get(ref, []), graceful=graceful) for ref in sorted(seen.known)]
    listed += [_unknown(ref, said) for ref, said in sorted(problems.items()) if ref not in seen.known]
    return {"node": seen.node, "synced": seen.synced, "policies": listed}


def summary(reconciler: Reconciler) -> dict[str, int]:
    """Return how many policies there are, select pods of this node, are enforced there, and are refused."""
    cluster, of = reconciler.cluster, reconciler.policies
    here = {ref for subject in of.regimes.subjects.values() for ref in subject.policies}
    lacking = {each.ref for each in of.problems}
    known: list[Policy] = [*cluster.policies.values(), *cluster.cluster_policies.values()]
    return {
        "known": len(known),
        "here": len(here),
        "enforced": sum(1 for ref in here if ref not in lacking and of.enforced(ref)) if reconciler.synced else 0,
        "refused": sum(1 for policy in known if policy.refused),
    }


def _policy(seen: Seen, ref: Ref, problems: list[str], *, graceful: bool) -> dict[str, Any]:
    policy = seen.known[ref]
    pods = sorted(seen.pods.get(ref, ()))
    ways = [way for way in _WAYS if rules_of(policy, way) is not None]
    enforced = seen.synced and ref not in seen.late
    left = graceful if policy.graceful is None else policy.graceful
    return {
        "policy": str(ref),
        "kind": str(ref.kind),
        "directions": [way.name.lower() for way in ways],
        "isolates": [way.name.lower() for way in ways] if isinstance(policy, NetworkPolicy) else [],
        "pods": [f"{pod.namespace}/{pod.name}" for pod in pods],
        "mode": "audit" if policy.audited else "enforce",
        "established": "graceful" if left else "strict",
        "refused": policy.refused,
        "enforced": enforced,
        "generation": policy.generation,
        "problems": problems,
        "selects": say_subject(policy),
        "tier": None if isinstance(policy, NetworkPolicy) else policy.tier.name.capitalize(),
        "priority": None if isinstance(policy, NetworkPolicy) else policy.priority,
        "rules": [rule for way in (ways if pods else ()) for rule in _rules(policy, way)],
    }


def _rules(policy: Policy, way: Direction) -> Iterator[dict[str, Any]]:
    """Yield a policy's rules as its manifest says them."""
    for index, (rule, each) in enumerate(zip(rules_of(policy, way) or (), statements_of(policy, way, {}), strict=True)):
        paths = (peer_path(way, index, rule, at) for at in range(len(rule.peers)))
        peers = [{"entry": path, "text": say_peer(peer, rule)} for path, peer in zip(paths, rule.peers, strict=True)]
        yield {
            "id": f"{each.rule:016x}",
            "rule": each.text,
            "action": each.action.name.lower(),
            "peers": peers or [{"entry": None, "text": say_everybody(rule)}],
            "ports": say_ports(rule.ports),
        }


def _unknown(ref: Ref, problems: list[str]) -> dict[str, Any]:
    """Describe a policy of which there is nothing but what is wrong with it."""
    lists: dict[str, list[str]] = {name: [] for name in ("directions", "isolates", "pods", "rules")}
    nothing = dict.fromkeys(("mode", "established", "selects", "tier", "priority"))
    head = {"policy": str(ref), "kind": str(ref.kind), **nothing}
    return {**head, **lists, "refused": True, "enforced": False, "generation": 0, "problems": problems}


class Held(NamedTuple):
    """What verdicts follow from at one moment."""

    node: str
    facts: list[Fact]
    peers: list[tuple[Likeness, dict[str, bytes]]]


def hold(reconciler: Reconciler) -> Held:
    """Take down what is known; quickly, for nothing else happens meanwhile."""
    cluster = reconciler.cluster
    listed = (cluster.nodes, cluster.namespaces, cluster.pods, cluster.policies, cluster.cluster_policies)
    found: list[Fact] = [fact for each in listed for fact in each.values()]
    return Held(cluster.node, found, [(like, dict(group.addresses)) for like, group in cluster.peers.groups.items()])


def facts(held: Held, *, graceful: bool) -> dict[str, Any]:
    """Return what was held as plain values: ``read`` makes it facts again."""
    peers = [
        {"likeness": to_plain(likeness), "pods": {name: packed.hex() for name, packed in pods.items()}}
        for likeness, pods in held.peers
    ]
    return {"node": held.node, "graceful": graceful, "facts": list(map(to_plain, held.facts)), "peers": peers}


def read(answer: dict[str, Any]) -> Iterator[Upsert]:
    """Yield the changes that lead from nothing to what an agent knows; raises ``ValueError``."""
    here = set()
    for each in answer["facts"]:
        fact = from_plain(each)
        if isinstance(fact, Pod):
            here.add(str(fact.ref))
        yield Upsert(fact)
    for group in answer["peers"]:
        likeness: Likeness = from_plain(group["likeness"])
        for text, addresses in group["pods"].items():
            if text not in here:
                ref = _ref(text)
                yield Upsert(Peer(ref, likeness.labels, bytes.fromhex(addresses), likeness.ports))


def _ref(text: str) -> Ref:
    kind, _, name = text.partition(" ")
    namespace, _, name = name.rpartition("/")
    return Ref(KindOf(kind), namespace, name)
