"""What kube-proxy's healthz says, said at the same moments."""

from __future__ import annotations

import json

import pytest

from ebpfnet.operate.health import Health, Verdict
from ebpfnet.operate.serve import Request

WALL = 1_700_000_000.25
NOW_TEXT = "2023-11-14T22:13:20.250000Z"


@pytest.fixture
def health() -> Health:
    return Health(timeout_s=60, wall=lambda: WALL)


def body(health: Health, now: float, path: str = "healthz") -> tuple[int, dict[str, object]]:
    response = getattr(health.verdict(now), path)()
    return response.status, json.loads(response.body)


def test_healthy_from_the_start(health: Health):
    assert body(health, 0) == (
        200,
        {"lastUpdated": NOW_TEXT, "currentTime": NOW_TEXT, "nodeEligible": True, "healthy": True},
    )


def test_healthy_until_the_first_update_as_kube_proxy_is(health: Health):
    health.queued(0)
    assert health.verdict(1000).healthy


def test_a_queued_update_may_wait_for_the_timeout(health: Health):
    health.updated(0)
    health.queued(10)
    health.queued(50)  # the oldest one counts
    assert [health.verdict(69.9).healthy, health.verdict(70).healthy] == [True, False]


def test_written_in_the_end_is_healthy_again(health: Health):
    health.updated(0)
    health.queued(10)
    health.updated(100)
    assert health.verdict(1000).healthy


def test_both_paths_say_when_it_was_updated_last(health: Health):
    health.updated(0)
    health.queued(10)
    last = "2023-11-14T22:12:10.250000Z"
    family = {"lastUpdated": last, "healthy": False}
    said = {"lastUpdated": last, "currentTime": NOW_TEXT, "healthy": False}
    said["status"] = {"IPv4": family, "IPv6": family}
    assert body(health, 70, "livez") == (503, said)
    assert body(health, 70) == (503, {**said, "nodeEligible": True})


def test_a_node_that_goes_away_is_live_but_gets_no_traffic(health: Health):
    health.updated(0)
    health.node_eligible(False)
    status, said = body(health, 5)
    assert (status, said["nodeEligible"], said["healthy"]) == (503, False, True)
    assert body(health, 5, "livez")[0] == 200
    assert "nodeEligible" not in body(health, 5, "livez")[1]


def test_never_updated_and_not_eligible_prints_gos_zero_time():
    verdict = Verdict(healthy=True, node_eligible=False, last_updated=None, current=WALL)
    assert json.loads(verdict.healthz().body)["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_answers_are_counted(health: Health):
    counted: list[tuple[str, str]] = []
    routes = health.routes(lambda: 0.0, lambda path, code: counted.append((path, code)))
    health.node_eligible(False)
    assert [routes[path](Request(path, "")).status for path in ("/healthz", "/livez")] == [503, 200]
    assert counted == [("/healthz", "503"), ("/livez", "200")]
