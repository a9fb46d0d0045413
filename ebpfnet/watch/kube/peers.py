"""Other nodes' pods, and these nodes: each followed only while it is wanted, and ``LINGER_S`` longer.

The pods are a gigabyte of JSON in the largest clusters, nodes tell of themselves all the time, and many nodes have no
policy that needs them. They are begun when everything else is in sync: no service waits for them, nor does ``Synced``.
``PeersKnown`` says when what is wanted is whole, and that it is not any more before the first is taken back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence

from ebpfnet.model.facts import Kind, PeersKnown
from ebpfnet.watch.kube.connection import Api
from ebpfnet.watch.kube.group import Group
from ebpfnet.watch.kube.reflector import Resource
from ebpfnet.watch.source import Deliver, Stats

LINGER_S = 60.0  # a policy that is replaced, or a pod that restarts, does not have everything read again


class _Part:
    """One resource: whether it is wanted, since when not, whether it is followed, and whole."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.wanted = self.following = self.whole = False
        self.unwanted_at = 0.0

    def patience(self, now: float) -> float | None:
        """Return the seconds that it is followed on; None: no end of it is in sight."""
        if self.wanted or not self.following:
            return None
        return self.unwanted_at + LINGER_S - now


class PeerWatch:
    """``want`` may be called from any thread, also by ``deliver``; it only takes a note."""

    def __init__(
        self,
        api: Api,
        resources: Sequence[Resource],
        deliver: Deliver,
        failed: Callable[[BaseException], None],
        idle_s: float,
    ) -> None:
        self._deliver = deliver
        self._failed = failed
        self._parts: dict[Kind, _Part] = {}
        for each in resources:
            group = Group(api, [each], deliver, lambda kind=each.kind: self._listed(kind), failed, idle_s)  # type: ignore[misc]
            self._parts[each.kind] = _Part(group)
        self._may_begin = self._ended = False
        self._telling = threading.Lock()
        self._known = False
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch peers on demand", daemon=True)
        for stats in self.stats:
            stats.state = "not needed"

    @property
    def stats(self) -> list[Stats]:
        """What became of each resource so far."""
        return [stats for part in self._parts.values() for stats in part.group.stats]

    def want(self, kinds: Collection[Kind]) -> None:
        """Say which are needed."""
        now = time.monotonic()  # one for all: what is given up at once is taken back at once
        for kind, part in self._parts.items():
            if (kind in kinds) != part.wanted:
                part.unwanted_at = now
                part.wanted = kind in kinds
                self._moved.set()

    def start(self) -> None:
        """Wait for wishes; none is granted before ``begin``."""
        self._deliver([PeersKnown(known=False)])
        self._thread.start()

    def begin(self) -> None:
        """Everything else is in sync."""
        self._may_begin = True
        self._moved.set()

    def end(self, seconds: float) -> None:
        """End for good; nothing is taken back."""
        self._ended = True
        self._moved.set()
        self._thread.join(seconds)
        for part in self._parts.values():
            part.group.end(seconds)

    def _run(self) -> None:
        try:
            self._tend()
        except BaseException as error:  # passed on: a thread has nobody above it
            self._failed(error)

    def _tend(self) -> None:
        while True:
            self._begin_wanted()
            self._end_unwanted()
            now = time.monotonic()
            waits = [left for part in self._parts.values() if (left := part.patience(now)) is not None]
            self._moved.wait(max(0.0, min(waits)) if waits else None)
            if self._ended:
                return
            self._moved.clear()

    def _begin_wanted(self) -> None:
        parts = [part for part in self._parts.values() if part.wanted and not part.following]
        if not parts or not self._may_begin:
            return
        for part in parts:
            part.following = True
        self._tell()
        for part in parts:
            part.group.start()

    def _end_unwanted(self) -> None:
        now = time.monotonic()
        parts = [part for part in self._parts.values() if (left := part.patience(now)) is not None and left <= 0]
        for part in parts:
            part.group.end()
            part.whole = False
        if self._ended or not parts:
            return
        self._tell()
        for part in parts:
            part.group.forget()
            part.following = False
        self._tell()

    def _listed(self, kind: Kind) -> None:
        self._parts[kind].whole = True
        self._tell()

    def _tell(self) -> None:
        """Say whether what is followed is whole, where that is news: one thread after the other."""
        with self._telling:
            followed = [part for part in self._parts.values() if part.following]
            known = bool(followed) and all(part.whole for part in followed)
            if known != self._known:
                self._known = known
                self._deliver([PeersKnown(known=known)])
