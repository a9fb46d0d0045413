"""Problems as Kubernetes Events: what is said about which object, how often, and never too often. Sending is not here.

An Event is a body for events.k8s.io/v1. Sources: kubernetes pkg/apis/core/validation/events.go (lengths and what must
be set), client-go tools/events/event_broadcaster.go (series: the second time at once, then every 30 minutes, over
after 6 minutes), client-go tools/record/events_cache.go (25 at once for an object, then one every 5 minutes).
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ebpfnet.model.facts import Kind, Problem, Ref

CONTROLLER = "ebpfnet"
NAME_MAX = 253
NOTE_BYTES_MAX = 1024
TEXT_BYTES_MAX = 128
"""Of reason, action and reporting instance."""

BURST = 25.0
REFILL_S = 300.0
AGENT_BURST = 100.0
AGENT_REFILL_S = 1.0
"""For all objects together: a bucket for each object is no bound where a hundred thousand are wrong at once."""

REFRESH_S = 30 * 60.0
FINISH_S = 6 * 60.0
REMEMBERED_MAX = 4096

API_VERSIONS = {
    Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1",
    Kind.NETWORK_POLICY: "networking.k8s.io/v1",
    Kind.SERVICE_CIDR: "networking.k8s.io/v1",
    Kind.CLUSTER_NETWORK_POLICY: "policy.networking.k8s.io/v1alpha2",
}
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

Body = dict[str, Any]
Post = Callable[[str, Body], None]


@dataclass(slots=True)
class _Bucket:
    """Tokens: ``burst`` at first, and one more every ``refill_s`` seconds."""

    burst: float
    refill_s: float
    tokens: float
    filled: float

    def has(self, now: float) -> bool:
        """Return whether there is a token at ``now``."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.filled) / self.refill_s)
        self.filled = now
        return self.tokens >= 1


@dataclass(slots=True)
class _Told:
    """An Event that was sent: its body, how often the same was seen, when last, and what the server knows.

    ``seen`` is for people, in seconds since 1970; ``met`` and ``sent`` are of the clock that never jumps.
    """

    namespace: str
    body: Body
    count: int
    seen: float
    met: float
    sent: float
    sent_count: int


class Recorder:
    """Turns problems into Events; thread-safe.

    ``post`` is called with namespace and body, on the caller's thread and under the recorder's lock: it should only
    queue. A body with ``series`` is an Event sent before, by its name: to be patched, or created when it is gone.
    ``wall`` gives seconds since 1970, for people; ``clock`` those of a clock that never jumps, for all that takes time.
    """

    def __init__(
        self,
        post: Post,
        node: str,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        """Events that the rate limit held back."""
        self._post = post
        self._node = node
        self._wall = wall
        self._clock = clock
        self._lock = threading.Lock()
        self._told: OrderedDict[tuple[Ref, str, str], _Told] = OrderedDict()
        self._buckets: OrderedDict[Ref, _Bucket] = OrderedDict()
        self._whole = _Bucket(AGENT_BURST, AGENT_REFILL_S, AGENT_BURST, clock())
        self._last_ns = 0

    def report(self, problem: Problem, *, uid: str = "", reason: str = "Refused", action: str = "Program") -> None:
        """Tell of a problem that was met now, for the first time or again.

        ``uid`` is the object's; without it ``kubectl describe`` does not find the Event. ``reason`` and ``action`` are
        words for machines, in CamelCase.
        """
        now, wall = self._clock(), self._wall()
        key = (problem.ref, problem.field, problem.reason)
        with self._lock:
            told = self._told.get(key)
            if told is None:
                if self._may(problem.ref, now):
                    name = self._name(problem.ref, wall)
                    body = event(problem, self._node, name, wall, uid=uid, reason=reason, action=action)
                    namespace = body["metadata"]["namespace"]
                    self._remember(key, _Told(namespace, body, 1, seen=wall, met=now, sent=now, sent_count=1))
                    self._post(namespace, body)
                return
            self._told.move_to_end(key)
            told.count += 1
            told.seen, told.met = wall, now
            if told.sent_count == 1 or now - told.sent >= REFRESH_S:
                self._send_series(problem.ref, told, now)

    def tend(self) -> None:
        """Send the last count of what was not met for ``FINISH_S`` and forget it; to be called every few minutes."""
        now = self._clock()
        with self._lock:
            for key, told in list(self._told.items()):
                if now - told.met < FINISH_S:
                    continue
                if told.count > told.sent_count:
                    self._send_series(key[0], told, now)
                del self._told[key]

    def _send_series(self, ref: Ref, told: _Told, now: float) -> None:
        if not self._may(ref, now):
            return
        told.sent, told.sent_count = now, told.count
        self._post(
            told.namespace,
            {**told.body, "series": {"count": told.count, "lastObservedTime": micro_time(told.seen)}},
        )

    def _may(self, ref: Ref, now: float) -> bool:
        """Take a token of the object's bucket and one of the agent's, or neither."""
        bucket = self._buckets.get(ref)
        if bucket is None:
            bucket = self._buckets[ref] = _Bucket(BURST, REFILL_S, BURST, now)
            if len(self._buckets) > REMEMBERED_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(ref)
        if not (bucket.has(now) and self._whole.has(now)):
            self.dropped += 1
            return False
        bucket.tokens -= 1
        self._whole.tokens -= 1
        return True

    def _remember(self, key: tuple[Ref, str, str], told: _Told) -> None:
        self._told[key] = told
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)

    def _name(self, ref: Ref, wall: float) -> str:
        self._last_ns = max(self._last_ns + 1, int(wall * 1e9))
        return event_name(ref.name, self._last_ns)


def event(
    problem: Problem,
    node: str,
    name: str,
    now: float,
    *,
    uid: str = "",
    reason: str = "Refused",
    action: str = "Program",
) -> Body:
    """Return the body of an Event called ``name`` about ``problem``, met at ``now`` (seconds since 1970) on ``node``.

    A problem of a file, or of an object whose name can't be one, is told of the node. An Event lives in its object's
    namespace, and in ``default`` when that has none.
    """
    ref = problem.ref
    named = _is_subdomain(ref.name) and (not ref.namespace or _is_subdomain(ref.namespace))
    note = f"{problem.field}: {problem.reason}"
    if ref.kind in {Kind.FILE, Kind.WATCH, Kind.INTERFACE} or not named:
        note = f"{ref}: {note}"
        ref, uid = Ref(Kind.NODE, "", node), node  # a kubelet's Events have the node's name for its uid too
    kind = Kind.POD if ref.kind == Kind.PEER else ref.kind
    regarding = {"apiVersion": API_VERSIONS.get(kind, "v1"), "kind": str(kind), "name": ref.name}
    if ref.namespace:
        regarding["namespace"] = ref.namespace
    if uid:
        regarding["uid"] = uid
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": ref.namespace or "default"},
        "eventTime": micro_time(now),
        "type": "Warning",
        "reason": shortened(reason, TEXT_BYTES_MAX),
        "action": shortened(action, TEXT_BYTES_MAX),
        "note": shortened(note, NOTE_BYTES_MAX),
        "regarding": regarding,
        "reportingController": CONTROLLER,
        "reportingInstance": shortened(f"{CONTROLLER}-{node}", TEXT_BYTES_MAX),
    }


def event_name(name: str, nanoseconds: int) -> str:
    """Return a name for an Event about the object ``name``: as client-go makes them, and at most 253 long."""
    suffix = f".{nanoseconds:x}"
    plain = re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[: NAME_MAX - len(suffix)].rstrip("-.")
    return f"{plain or CONTROLLER}{suffix}"


def micro_time(seconds: float) -> str:
    """Return seconds since 1970 as Kubernetes' MicroTime: RFC 3339 with six digits, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def shortened(text: str, bytes_max: int) -> str:
    """Return the text, or as much of it as fits in ``bytes_max`` bytes of UTF-8 with an ellipsis at its end."""
    raw = text.encode(errors="replace")
    if len(raw) <= bytes_max:
        return raw.decode()
    return raw[: bytes_max - len("…".encode())].decode(errors="ignore") + "…"


def _is_subdomain(text: str) -> bool:
    """RFC 1123, as the API wants names of Events and namespaces."""
    return len(text) <= NAME_MAX and ".." not in text and _SUBDOMAIN.fullmatch(text) is not None
