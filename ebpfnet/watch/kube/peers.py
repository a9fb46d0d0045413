"""Other nodes' pods and the namespaces: followed only while they are wanted, and ``LINGER_S`` longer.

They are a gigabyte of JSON in the largest clusters, and many nodes have no policy that needs them. They are begun when
everything else is in sync: no service waits for them, nor does ``Synced``. ``PeersKnown`` says when they are whole, and
that they are not any more before the first is taken back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ebpfnet.model.facts import PeersKnown
from ebpfnet.watch.kube.connection import Api
from ebpfnet.watch.kube.group import Group
from ebpfnet.watch.kube.reflector import Resource
from ebpfnet.watch.source import Deliver, Stats

LINGER_S = 60.0  # a policy that is replaced, or a pod that restarts, does not have everything read again


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
        self._group = Group(api, resources, deliver, self._listed, failed, idle_s)
        self._wanted = self._may_begin = self._ended = False
        self._unwanted_at = 0.0
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch peers on demand", daemon=True)
        for stats in self.stats:
            stats.state = "not needed"

    @property
    def stats(self) -> list[Stats]:
        """What became of each resource so far."""
        return self._group.stats

    def want(self, *, wanted: bool) -> None:
        """Say whether they are needed."""
        if wanted != self._wanted:
            self._unwanted_at = time.monotonic()
            self._wanted = wanted
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
        self._group.end(seconds)

    def _run(self) -> None:
        try:
            self._tend()
        except BaseException as error:  # passed on: a thread has nobody above it
            self._failed(error)

    def _tend(self) -> None:
        following = False
        while True:
            wait = None
            if self._wanted and not following and self._may_begin:
                following = True
                self._group.start()
            elif following and not self._wanted:
                wait = self._unwanted_at + LINGER_S - time.monotonic()
                if wait <= 0:
                    following, wait = False, None
                    self._stop()
            self._moved.wait(wait)
            if self._ended:
                return
            self._moved.clear()

    def _stop(self) -> None:
        self._group.end()
        if not self._ended:
            self._deliver([PeersKnown(known=False)])
            self._group.forget()

    def _listed(self) -> None:
        self._deliver([PeersKnown(known=True)])
