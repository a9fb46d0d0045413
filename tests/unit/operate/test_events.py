"""Events: bodies that an API server takes, and no more of them than it should get."""

from __future__ import annotations

from typing import Any

import pytest

from ebpfnet.model.facts import Kind, Problem, Ref
from ebpfnet.operate import events
from ebpfnet.operate.events import Recorder, event, event_name, micro_time, shortened

WEB = Ref(Kind.SERVICE, "shop", "web")
PROBLEM = Problem(WEB, "spec.ports[0].port", "0 is not a port (1 to 65535)")
NOW = 1_700_000_000.25


class Sent:
    """A clock, a recorder and what it posted."""

    def __init__(self) -> None:
        self.now = NOW
        self.jumped = 0.0
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.recorder = Recorder(
            lambda namespace, body: self.posts.append((namespace, body)),
            "node-a",
            lambda: self.now + self.jumped,
            lambda: self.now,
        )

    def report(self, problem: Problem = PROBLEM, times: int = 1) -> None:
        for _ in range(times):
            self.recorder.report(problem)

    @property
    def counts(self) -> list[int]:
        return [body.get("series", {}).get("count", 1) for _, body in self.posts]


@pytest.fixture
def sent() -> Sent:
    return Sent()


def test_a_whole_body():
    assert event(PROBLEM, "node-a", "web.1", NOW, uid="u-1") == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "web.1", "namespace": "shop"},
        "eventTime": "2023-11-14T22:13:20.250000Z",
        "type": "Warning",
        "reason": "Refused",
        "action": "Program",
        "note": "spec.ports[0].port: 0 is not a port (1 to 65535)",
        "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "u-1"},
        "reportingController": "ebpfnet",
        "reportingInstance": "ebpfnet-node-a",
    }


@pytest.mark.parametrize(
    ("kind", "api_version", "name"),
    [
        (Kind.ENDPOINT_SLICE, "discovery.k8s.io/v1", "EndpointSlice"),
        (Kind.NETWORK_POLICY, "networking.k8s.io/v1", "NetworkPolicy"),
        (Kind.PEER, "v1", "Pod"),
    ],
)
def test_an_object_is_named_as_its_api_does(kind: Kind, api_version: str, name: str):
    regarding = event(Problem(Ref(kind, "shop", "web-x"), "ports", "no"), "node-a", "x", NOW)["regarding"]
    assert (regarding["apiVersion"], regarding["kind"]) == (api_version, name)


def test_a_policy_of_the_cluster_is_told_of_in_default():
    problem = Problem(Ref(Kind.CLUSTER_NETWORK_POLICY, "", "deny"), "spec.tier", "no")
    body = event(problem, "node-a", "x", NOW, uid="u-1")
    version = "policy.networking.k8s.io/v1alpha2"
    want = {"apiVersion": version, "kind": "ClusterNetworkPolicy", "name": "deny", "uid": "u-1"}
    assert (body["metadata"]["namespace"], body["regarding"]) == ("default", want)


def test_what_has_no_namespace_is_told_in_default():
    body = event(Problem(Ref(Kind.NODE, "", "node-b"), "spec.podCIDR", "no"), "node-a", "x", NOW)
    assert body["metadata"]["namespace"] == "default"
    assert "namespace" not in body["regarding"]


@pytest.mark.parametrize("ref", [Ref(Kind.FILE, "", "/m/a.yaml"), Ref(Kind.SERVICE, "shop", "(no name)")])
def test_what_is_no_object_is_told_of_the_node(ref: Ref):
    body = event(Problem(ref, "kind", "missing"), "node-a", "x", NOW)
    assert body["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"}
    assert body["note"] == f"{ref}: kind: missing"


def test_lengths():
    body = event(Problem(WEB, "f", "ü" * 2000), "n" * 253, "x", NOW, reason="R" * 200, action="A" * 200)
    assert len(body["note"].encode()) <= 1024
    assert body["note"].endswith("ü…")
    assert [len(body[key].encode()) for key in ("reason", "action", "reportingInstance")] == [128, 128, 128]


def test_a_surrogate_is_no_reason_to_fail():
    assert shortened("a\udc80", 10) == "a?"


@pytest.mark.parametrize(
    ("name", "want"),
    [("web", "web.ff"), ("(No Name)", "no-name.ff"), ("", "ebpfnet.ff"), ("a" * 300, "a" * 250 + ".ff")],
)
def test_a_name(name: str, want: str):
    assert event_name(name, 255) == want


def test_micro_time_has_six_digits():
    assert micro_time(0) == "1970-01-01T00:00:00.000000Z"


def test_the_second_time_makes_a_series_at_once(sent: Sent):
    sent.report()
    sent.now += 1
    sent.report()
    (namespace, first), (_, second) = sent.posts
    assert namespace == "shop"
    assert second == {**first, "series": {"count": 2, "lastObservedTime": micro_time(NOW + 1)}}


def test_a_series_is_refreshed_now_and_then(sent: Sent):
    sent.report(times=10)
    sent.now += events.REFRESH_S
    sent.report()
    assert sent.counts == [1, 2, 11]


def test_a_series_ends_with_its_last_count_and_begins_anew(sent: Sent):
    sent.report(times=5)
    sent.recorder.tend()
    assert sent.counts == [1, 2]
    sent.now += events.FINISH_S
    sent.recorder.tend()
    sent.recorder.tend()
    assert sent.counts == [1, 2, 5]
    sent.report()
    assert sent.counts == [1, 2, 5, 1]
    assert sent.posts[-1][1]["metadata"]["name"] != sent.posts[0][1]["metadata"]["name"]


def test_another_field_is_another_event(sent: Sent):
    sent.report()
    sent.report(Problem(WEB, "spec.type", "x"))
    names = {body["metadata"]["name"] for _, body in sent.posts}
    assert len(names) == len(sent.posts) == 2


def test_an_object_has_a_burst_and_then_one_every_five_minutes(sent: Sent):
    for number in range(40):
        sent.report(Problem(WEB, f"f{number}", "x"))
    assert (len(sent.posts), sent.recorder.dropped) == (25, 15)
    sent.now += 300
    sent.report(Problem(WEB, "f38", "x"))
    sent.report(Problem(WEB, "f39", "x"))
    assert len(sent.posts) == 26


def test_another_object_has_its_own(sent: Sent):
    for number in range(30):
        sent.report(Problem(WEB, f"f{number}", "x"))
    sent.report(Problem(Ref(Kind.SERVICE, "shop", "api"), "f", "x"))
    assert len(sent.posts) == 26


def test_all_objects_together_have_one_too(sent: Sent):
    for number in range(1000):
        sent.report(Problem(Ref(Kind.SERVICE, "shop", f"s{number}"), "f", "x"))
    assert len(sent.posts) == events.AGENT_BURST
    sent.now += 10
    for number in range(500, 600):
        sent.report(Problem(Ref(Kind.SERVICE, "shop", f"s{number}"), "f", "x"))
    assert len(sent.posts) == events.AGENT_BURST + 10


def test_what_is_remembered_is_bounded(sent: Sent, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "REMEMBERED_MAX", 3)
    for number in range(10):
        sent.report(Problem(Ref(Kind.SERVICE, "shop", f"s{number}"), "f", "x"))
    assert (len(sent.recorder._told), len(sent.recorder._buckets)) == (3, 3)


def test_a_clock_that_goes_back_gives_no_name_twice(sent: Sent):
    sent.report()
    sent.jumped -= 100
    sent.report(Problem(WEB, "other", "x"))
    assert len({body["metadata"]["name"] for _, body in sent.posts}) == 2


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps_ends_nothing_early_or_late(sent: Sent, jump: float):
    sent.report(times=3)
    sent.jumped = jump
    sent.recorder.tend()
    assert sent.counts == [1, 2]
    sent.now += events.FINISH_S
    sent.recorder.tend()
    assert sent.counts == [1, 2, 3]
    sent.now += events.REFRESH_S
    sent.report(times=2)
    assert sent.counts == [1, 2, 3, 1, 2]
