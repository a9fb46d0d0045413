"""A node with policies: its tables in the kernel, its programs beside them, and what would be its agent's answers."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ebpfnet import abi, policing, status
from ebpfnet.datapath import build, load
from ebpfnet.exits import NotRunning
from ebpfnet.maps import kernel, pins
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Fact,
    IPBlock,
    Kind,
    Namespace,
    NetworkPolicy,
    PodPeer,
    PolicyPort,
    PolicyRule,
    Ref,
    Synced,
    Tier,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import TCP, Clock, piece, pod, service, wire
from tests.prog.commands import SMALL, call, packed

EVERYBODY = ipaddress.ip_network("0.0.0.0/0")
OFFICE = IPBlock(ipaddress.ip_network("192.0.2.0/24"), (ipaddress.ip_network("192.0.2.128/25"),))
FLAGS = {"graceful": False}
"""Of the agent."""


def is_app(name: str) -> Selector:
    return Selector((Requirement("app", frozenset({name})),))


def policy(name: str, selected: Selector, **fields: Any) -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", name), selected, **fields)


WEB = policy(
    "web",
    is_app("web"),
    ingress=(
        PolicyRule((PodPeer(is_app("client")),), (PolicyPort(TCP, 80, 90),)),
        PolicyRule((OFFICE,)),
        PolicyRule((PodPeer(is_app("nobody")),)),
    ),
    generation=3,
)
QUIET = policy("quiet", is_app("client"), egress=(PolicyRule((PodPeer(is_app("web")),)),), audited=True)
ADMIN = ClusterNetworkPolicy(
    Ref(Kind.CLUSTER_NETWORK_POLICY, "", "no-telnet"),
    Tier.ADMIN,
    1,
    EVERYTHING,
    is_app("web"),
    ingress=(ClusterRule("telnet", Action.DENY, (PodPeer(EVERYTHING, EVERYTHING),), (PolicyPort(TCP, 23, 23),)),),
)


class Node(NamedTuple):
    """A node with its tables, programs, and what would be an agent's."""

    root: Path
    tables: dict[str, kernel.KernelTable]
    reconciler: Reconciler
    clock: Clock

    def ask(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return call("policy", *words, "--pins", str(self.root / "bpf" / "x"), "--run", str(self.root), check=check)

    def json(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "-o", "json").stdout)


def labelled(name: str, app: str, *addresses: str) -> Fact:
    return dataclasses.replace(pod(name, *addresses), labels=(("app", app),))


@contextmanager
def brought_up(root: Path, compiled: build.Object) -> Iterator[Node]:
    (root / "bpf").mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", root / "bpf"], check=True)
    tables = pins.create_or_open_all(root / "bpf" / "x", SMALL)
    programs = load.load(compiled, tables)
    for program in programs.values():
        program.pin(root / "bpf" / "x" / program.name)
        program.close()
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    facts: list[Fact] = [
        Namespace(Ref(Kind.NAMESPACE, "", "default"), ()),
        labelled("client", "client", "10.0.0.9", "fd00::9"),
        labelled("web", "web", "10.0.0.1", "fd00::1"),
        labelled("other", "other", "10.0.0.2", "fd00::2"),
        WEB,
        QUIET,
        ADMIN,
        service("shop", "10.96.0.1", "fd00:96::1", ports=(("http", TCP, 80), ("more", TCP, 81))),
        piece("shop", "v4", ["10.0.0.1", "10.0.0.2"], ports=(("http", TCP, 80),)),
    ]
    reconciler.apply([*map(Upsert, facts)])
    reconciler.set_wires({"default/client": wire(5), "default/web": wire(6), "default/other": wire(7)})
    reconciler.apply([Synced()])
    _traffic(tables)
    yield Node(root, tables, reconciler, clock)
    pins.close_all(tables)
    subprocess.run(["umount", "-l", root / "bpf"], check=True)


def _traffic(tables: dict[str, kernel.KernelTable]) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    none = abi.Wire(0, bytes(6))
    for source, port, flags in (("10.0.0.9", 80, 0), ("192.0.2.7", 443, 0), ("192.168.0.1", 80, abi.FlowFlag.HOST)):
        key = abi.Tuple(packed(source), packed("10.0.0.1"), 40000, port, TCP)
        state, rule = abi.FlowState.ESTABLISHED, abi.identify("rule NetworkPolicy default/web ingress 0")
        flow = abi.Flow(key, now, 0, 0, none, wire(6), state, abi.FlowFlag(flags), 2, ingress_rule=rule)
        tables["flows"].put(key.pack(), flow.pack())
    key = abi.Tuple(packed("192.0.2.200"), packed("10.0.0.1"), 40000, 80, TCP)
    isolated = abi.identify("isolated ingress default/web")
    sample = abi.DropSample(1, now, key, 5, 60, abi.Hook.FROM_NETWORK, abi.DropReason.POLICY_INGRESS, isolated)
    tables["drop_samples"].put((1).to_bytes(4, "little"), sample.pack())
    empty = bytes(tables["rule_hits"].value_size - abi.Hits.size())
    tables["rule_hits"].put(isolated.to_bytes(8, "little"), abi.Hits(0, 4, 0).pack() + empty)


@contextmanager
def answering(node: Node) -> Iterator[Node]:
    """Return the node while its agent answers."""
    stop = threading.Event()
    answers = policing.answers(threading.Lock(), node.reconciler, False)
    answers = {**answers, "facts": lambda: policing.facts(policing.hold(node.reconciler), graceful=FLAGS["graceful"])}
    agent = threading.Thread(target=status.serve, args=(node.root, answers, stop))
    agent.start()
    while True:
        try:
            status.ask(node.root, "ping")
            break
        except NotRunning:
            time.sleep(0.01)
    yield node
    stop.set()
    agent.join()
