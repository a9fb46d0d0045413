"""ebpfnet simulate with every kind of service against the oracle, on random clusters."""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ebpfnet.datapath import build
from ebpfnet.operate import nodeports
from ebpfnet.simulate.interactive import Session
from ebpfnet.simulate.network import private_network
from ebpfnet.simulate.world import Flags, World
from tests import service_oracle
from tests.service_clusters import Cluster, Question, questions
from tests.service_oracle import Action, Answer, Oracle, Who

QUESTIONS, SAMPLES = 80, 3
VERDICTS = {Action.DROP: "drop", Action.REJECT: "reject"}


def flags_of(flags: service_oracle.Flags) -> Flags:
    def blocks(texts: Iterable[str]) -> tuple[Any, ...]:
        return tuple(map(ipaddress.ip_network, texts))

    return Flags(
        blocks(flags.service_cidrs),
        blocks(flags.cluster_cidrs),
        blocks(flags.external_ip_cidrs),
        nodeports.expand(flags.nodeport_addresses).choose,
    )


def worth(cluster: Cluster, oracle: Oracle) -> Iterator[Question]:
    """Yield connections that this node's programs are the first to see, from and to addresses of objects.

    What its own processes send to a block of pods and to none of them has no route: no program sees it.
    """
    nodes = [each for each in cluster.manifests() if each["kind"] == "Node"]
    pods = [ipaddress.ip_network(block) for node in nodes for block in node["spec"].get("podCIDRs", ())]
    for question in questions(cluster, random.Random(cluster.here), QUESTIONS):
        remote = question.client.who == Who.REMOTE_POD and question.destination not in oracle.own
        extra = set(cluster.own) - oracle.own
        address = ipaddress.ip_address(question.destination)
        if question.client.who == Who.HOST and any(address in block for block in pods):
            continue
        if not remote and extra.isdisjoint({question.client.address, question.destination}):
            yield question


def check(answer: dict[str, Any], expected: Answer) -> None:
    if expected.action in VERDICTS:
        assert (answer["verdict"], answer["reason"]) == (VERDICTS[expected.action], expected.reason)
        assert not any(entry["hits"] for entry in answer["backends"].values())
    elif expected.action == Action.FORWARD:
        named = {service_end(*end) for end in expected.backends}
        assert set(answer["backends"]) == named
        if frozenset() in expected.backends.values():  # the node has no address to stand in with
            return
        assert (answer["verdict"], answer["reason"]) == ("allow", None)
        assert sum(entry["hits"] for entry in answer["backends"].values()) == SAMPLES
        for end, sources in expected.backends.items():
            entry = answer["backends"][service_end(*end)]
            if entry["hits"]:
                seen = entry["snat"] or answer["flow"]["from"]
                assert ipaddress.ip_address(seen) in set(map(ipaddress.ip_address, sources))


def service_end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.mark.parametrize("seed", range(5))
def test_simulate_says_what_the_oracle_says(compiled: build.Object, seed: int) -> None:
    cluster = Cluster(seed)
    with private_network(), World(compiled, flags_of(cluster.flags)) as world:
        session = Session(world, [], interactive=True)
        for manifest in cluster.manifests():
            ask(session, {"apply": manifest})
        oracle = Oracle(cluster.manifests(), cluster.here, cluster.flags)
        for question in worth(cluster, oracle):
            flow = {"from": question.client.address, "to": question.destination, "port": question.port}
            flow |= {"protocol": question.protocol, "samples": SAMPLES}
            if question.client.who == Who.OUTSIDE:
                flow["node"] = cluster.here
            answer = ask(session, flow)
            expected = oracle.answer(*question)
            try:
                check(answer, expected)
            except AssertionError as error:
                raise AssertionError(f"{question}: expected {expected}, got {answer}") from error


def ask(session: Session, question: Any) -> dict[str, Any]:
    (answer,) = session.answers([json.dumps(question)])
    return answer
