"""Endpoint changes at a rate, made from the parts of a `scale` cluster's slices without encoding anything again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from itertools import islice

from tests.apiserver.scale import ENDPOINT_PART, TRIGGER_PART, Scale
from tests.apiserver.store import Parts, Store
from tests.bench.objects import PER_SLICE

TICK_S = 0.002
READY = b'"conditions":{"ready":true,"serving":true,"terminating":false}'
UNREADY = b'"conditions":{"ready":false,"serving":false,"terminating":false}'
TERMINATING = b'"conditions":{"ready":false,"serving":true,"terminating":true}'
AT_ONCE = 256
Step = tuple[str, Parts]


def now() -> bytes:
    """Return the time as Go's RFC3339Nano writes it, to the microsecond."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%06dZ" % (rest // 1_000)


class Churn:
    """Changes to slices in a thread of their own, of one kind at a time; ``done`` counts them since the last start.

    ``failed`` is what ended it, when that was no call of `stop`.
    """

    def __init__(self, store: Store, scale: Scale, seed: int = 1) -> None:
        self.store, self.scale = store, scale
        self.done = 0
        self.failed: Exception | None = None
        self._slices = store.tables["endpointslices"].items
        self._dice = random.Random(seed)
        self._generation = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def flip(self, rate: float, count: int | None = None) -> None:
        """Flip the readiness of an endpoint of a random slice ``rate`` times a second, until ``count`` or `stop`."""
        self._start(self._flips(), rate, count)

    def roll(self, rate: float, service: int = 0) -> None:
        """Replace all pods of a service, one after the other: each terminates, then another stands in its place."""
        self._generation += 1
        self._start(self._rolls(service, self._generation), rate, None)

    def stop(self) -> None:
        """End what runs."""
        self._stop.set()
        self.wait()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it is done. Raises TimeoutError, and what it failed with."""
        if self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TimeoutError(f"churn: {self.done} changes within {timeout_s} s")
        if self.failed:
            raise self.failed

    def _start(self, steps: Iterator[Step], rate: float, count: int | None) -> None:
        self.stop()
        self._stop.clear()
        self.done = 0
        self._thread = threading.Thread(target=self._run, args=(steps, rate, count), name="churn", daemon=True)
        self._thread.start()

    def _run(self, steps: Iterator[Step], rate: float, count: int | None) -> None:
        begin = time.monotonic()
        counted = self._counted(steps)
        try:
            while not self._stop.wait(TICK_S):
                due = int((time.monotonic() - begin) * rate)
                target = min(self.done + AT_ONCE, due if count is None else min(due, count))
                self.store.change("EndpointSlice", islice(counted, max(0, target - self.done)))
                if self.done < target or self.done == count:
                    return
        except Exception as error:
            self.failed = error

    def _counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            self.done += 1
            yield step

    # A step is made while the store applies the one before it: two in a row may concern the same slice.

    def _flips(self) -> Iterator[Step]:
        keys = sorted(filter(self._parts, self._slices))
        while keys:
            key = self._dice.choice(keys)
            parts = self._parts(key)
            if not parts:
                continue  # a test deleted it, or put another
            index = self._dice.randrange(ENDPOINT_PART, len(parts) - 1)
            before, after = (READY, UNREADY) if READY in parts[index] else (UNREADY, READY)
            yield key, _spliced(parts, index, parts[index].replace(before, after))

    def _rolls(self, service: int, generation: int) -> Iterator[Step]:
        for index in range(self.scale.sizes[service]):
            key = f"{self.scale.namespace(service)}/service-{service:05}-{index // PER_SLICE:02}"
            place = ENDPOINT_PART + index % PER_SLICE
            parts = self._parts(key)
            ends = parts[place].replace(READY, TERMINATING).replace(UNREADY, TERMINATING)
            yield key, _spliced(parts, place, ends)
            begins = self.scale.endpoint(service, index, generation)
            yield key, _spliced(self._parts(key), place, begins)

    def _parts(self, key: str) -> Parts:
        """Return the parts of a slice; none for one that is gone or was put by a test."""
        found = self._slices.get(key)
        parts = found.parts if found else ()
        return parts if isinstance(parts, tuple) and len(parts) > ENDPOINT_PART + 1 else ()


def _spliced(parts: Parts, index: int, endpoint: bytes) -> Parts:
    """Return a slice's parts with another endpoint, changed now."""
    changed = list(parts)
    changed[TRIGGER_PART], changed[index] = now(), endpoint
    return tuple(changed)
