"""Whether the agent does its work: kube-proxy's ``/healthz`` and ``/livez``, with its meaning and its JSON.

Source: kubernetes pkg/proxy/healthcheck/proxy_health.go at 81810de635aa, which tells each family.
Load balancers ask ``/healthz`` whether to send the node traffic, so it says no while the node is being deleted;
``/livez`` leaves the node out, because restarting the agent would not help.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ebpfnet.operate.serve import JSON, Handler, Request, Response

DEFAULT_TIMEOUT_S = 60.0
"""Twice kube-proxy's default sync period of 30 s."""

FAMILIES = ("IPv4", "IPv6")
NEVER = "0001-01-01T00:00:00Z"  # what Go prints for a time that was never set


@dataclass(frozen=True, slots=True)
class Verdict:
    """One look at the agent. Times are seconds since 1970; ``last_updated`` is None before the first update."""

    healthy: bool
    """Every queued update was written in time; the node is left out."""
    node_eligible: bool
    last_updated: float | None
    current: float
    families: tuple[str, ...] = FAMILIES

    def healthz(self) -> Response:
        """Return the answer of ``/healthz``: 200, or 503 when unhealthy or the node is being deleted."""
        return self._response(self.healthy and self.node_eligible, {"nodeEligible": self.node_eligible})

    def livez(self) -> Response:
        """Return the answer of ``/livez``: 200, or 503 when unhealthy."""
        return self._response(self.healthy, {})

    def _response(self, good: bool, more: dict[str, Any]) -> Response:  # noqa: FBT001
        now, last = _rfc3339(self.current), _rfc3339(self.last_updated)
        # A good answer has always been updated just now: older kube-proxies synced all the time, readers rely on it.
        answer = {"lastUpdated": now if good else last, "currentTime": now, **more, "healthy": self.healthy}
        if self.last_updated is not None:
            answer["status"] = {
                family: {"lastUpdated": last, "healthy": self.healthy} for family in sorted(self.families)
            }
        return Response(200 if good else 503, json.dumps(answer, separators=(",", ":")).encode(), JSON)


def _rfc3339(seconds: float | None) -> str:
    """Return what Go's time.Time says in JSON."""
    if seconds is None:
        return NEVER
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Health:
    """What the agent tells and the probes ask; thread-safe.

    ``now`` is seconds of a clock that never jumps (time.monotonic); ``wall`` gives seconds since 1970 for people.
    As in kube-proxy, an agent is healthy until its first update was written.
    """

    def __init__(
        self,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        families: tuple[str, ...] = FAMILIES,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._timeout_s = timeout_s
        self._families = families
        self._wall = wall
        self._lock = threading.Lock()
        self._queued: float | None = None
        self._updated: float | None = None
        self._eligible = True

    def queued(self, now: float) -> None:
        """Say that something has to be written; only the oldest one that waits counts."""
        with self._lock:
            if self._queued is None:
                self._queued = now

    def updated(self, now: float) -> None:
        """Say that everything queued so far is written."""
        with self._lock:
            self._queued = None
            self._updated = now

    def node_eligible(self, eligible: bool) -> None:  # noqa: FBT001  # it says one thing
        """Say whether the node may get traffic (it is not leaving); until told otherwise it may."""
        with self._lock:
            self._eligible = eligible

    def verdict(self, now: float) -> Verdict:
        """Return how things are."""
        with self._lock:
            queued, updated, eligible = self._queued, self._updated, self._eligible
        late = queued is not None and now - queued >= self._timeout_s
        current = self._wall()
        return Verdict(
            healthy=updated is None or not late,
            node_eligible=eligible,
            last_updated=None if updated is None else current - (now - updated),
            current=current,
            families=self._families,
        )

    def healthy(self) -> bool:
        """Say whether every queued update was written in time; the node is left out."""
        return self.verdict(time.monotonic()).healthy

    def routes(
        self, clock: Callable[[], float] = time.monotonic, count: Callable[[str, str], None] | None = None
    ) -> dict[str, Handler]:
        """Return what to ``serve``; ``count`` is told path and status of every answer."""

        def answered(request: Request, response: Response) -> Response:
            if count is not None:
                count(request.path, str(response.status))
            return response

        return {
            "/healthz": lambda request: answered(request, self.verdict(clock()).healthz()),
            "/livez": lambda request: answered(request, self.verdict(clock()).livez()),
        }
