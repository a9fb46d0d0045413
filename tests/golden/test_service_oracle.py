"""Objects in, tables out, and the tables read as the datapath reads them: every answer is the oracle's.

Random clusters are changed step by step; after each step the tables that followed, and tables written from scratch,
are both asked. ``EBPFNET_ORACLE_SEEDS`` says how many clusters (60), ``EBPFNET_ORACLE_FIRST`` where to begin (0).
"""

from __future__ import annotations

import collections
import os
import random

import pytest

from tests.service_clusters import Cluster, Question, questions
from tests.service_oracle import Action, Answer, Oracle
from tests.service_tables import Follower, Tables, agrees

FIRST, COUNT = int(os.environ.get("EBPFNET_ORACLE_FIRST", "0")), int(os.environ.get("EBPFNET_ORACLE_SEEDS", "60"))
STEPS, QUESTIONS = 5, 40


def check(oracle: Oracle, asked: list[Question], tables: Tables) -> None:
    for question in asked:
        expected, got = oracle.answer(*question), tables.answer(*question)
        if question[1] in oracle.others and got == Answer(Action.DROP, "UNALLOCATED_ADDRESS"):
            continue  # kube-proxy drops what another proxy has not taken by then
        assert agrees(expected, got), f"{question}: expected {expected}, got {got}"


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_tables_say_what_the_oracle_says(seed: int):
    cluster, dice = Cluster(seed), random.Random(seed)
    follower = Follower(cluster, cluster.manifests())
    for number in range(STEPS + 1):
        if number:
            follower.follow(cluster.step())
        oracle, asked = cluster.oracle(), questions(cluster, dice, QUESTIONS)
        shuffled = cluster.manifests()
        dice.shuffle(shuffled)
        for tables in (follower.tables, Follower(cluster, shuffled).tables):
            check(oracle, asked, Tables(tables))


def test_every_kind_of_answer_is_asked_for():
    seen = collections.Counter[str]()
    for seed in range(30):
        cluster, dice = Cluster(seed), random.Random(seed)
        oracle = cluster.oracle()
        for question in questions(cluster, dice, 200):
            answer = oracle.answer(*question)
            seen[f"{question.client.who}: {answer.action} {answer.reason}".strip()] += 1
    assert len(seen) == 4 * 7, sorted(seen)
