"""Random clusters and connections: what is compiled of them against the oracle.

``EBPFNET_POLICY_PAIRS`` says how many pairs (a million takes a quarter of an hour), ``EBPFNET_POLICY_SEED`` where to
begin.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.policy_clusters import Cluster
from tests.policy_oracle import Answer, Flow, Oracle
from tests.policy_verdicts import Verdicts

PAIRS = int(os.environ.get("EBPFNET_POLICY_PAIRS", "6000"))
SEED = int(os.environ.get("EBPFNET_POLICY_SEED", "0"))
EACH = 60  # flows of a cluster
PARTS = 4


def is_right(answer: Answer, want: Answer) -> bool:
    """Say whether an answer is the oracle's: several rules that allow may each be named."""
    same = answer.verdict == want.verdict and answer.graceful == want.graceful
    return same and answer.by <= want.by and bool(answer.by) == bool(want.by)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_verdict_is_wrong(part: int, monkeypatch: pytest.MonkeyPatch):
    if part % 2:  # as if every cluster had the many policies for which that pays
        monkeypatch.setattr("ebpfnet.compile.policy.regime.MANY", 0)
    seen: Counter[str] = Counter()
    for seed in range(SEED + part, SEED + PAIRS // EACH, PARTS):
        cluster = Cluster(seed)
        manifests = cluster.manifests()
        oracle = Oracle(manifests, graceful=cluster.graceful)
        verdicts = Verdicts(manifests, graceful=cluster.graceful)
        for flow in cluster.flows(EACH):
            for direction in ("egress", "ingress"):
                want: Answer = getattr(oracle, direction)(flow)
                answer: Answer = getattr(verdicts, direction)(flow)
                assert is_right(answer, want), describe(seed, direction, flow, answer, want)
                seen[_kind(want)] += 1
    assert min(seen[kind] for kind in KINDS) > 0, seen


KINDS = ("unasked", "rule", "isolated", "accept", "deny", "audit")


def _kind(want: Answer) -> str:
    text = min(want.by, default="")
    if want.verdict == "audit" or not text:
        return want.verdict if text else "unasked"
    if text.startswith("NetworkPolicy"):
        return "rule"
    return "isolated" if text.startswith("isolated") else {"allow": "accept"}.get(want.verdict, "deny")


def describe(seed: int, direction: str, flow: Flow, answer: Answer, want: Answer) -> str:
    """Say which question was answered wrongly."""
    return f"cluster {seed}, {direction} of {flow}: {answer}, the oracle says {want}"
