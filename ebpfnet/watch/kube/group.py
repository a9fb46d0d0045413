"""Resources that are followed together, a thread each: begun at once, whole when all are, ended at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ebpfnet.watch.kube.connection import Api
from ebpfnet.watch.kube.reflector import Reflector, Resource
from ebpfnet.watch.source import Deliver, Stats


class Group:
    """``listed`` is called when every resource has its first list; ``failed`` gets what ended one of the threads."""

    def __init__(
        self,
        api: Api,
        resources: Sequence[Resource],
        deliver: Deliver,
        listed: Callable[[], None],
        failed: Callable[[BaseException], None],
        idle_s: float,
    ) -> None:
        self._api = api.twin()
        self._listed = listed
        self._failed = failed
        self._lock = threading.Lock()
        self._waiting = 0
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self.reflectors = [Reflector(each, self._api, deliver, self._one_listed, idle_s) for each in resources]

    @property
    def stats(self) -> list[Stats]:
        """What became of each resource so far."""
        return [reflector.stats for reflector in self.reflectors]

    def start(self) -> None:
        """Begin to follow."""
        self._waiting = len(self.reflectors)
        self._ended.clear()
        self._api.reopen()
        self._threads = [
            threading.Thread(target=self._follow, args=(each,), name=f"watch {each.resource.plural}", daemon=True)
            for each in self.reflectors
        ]
        for thread in self._threads:
            thread.start()

    def end(self, seconds: float | None = None) -> None:
        """End every request, and wait until the threads are over or so many seconds have passed."""
        self._ended.set()
        self._api.close()
        for thread in self._threads:
            thread.join(seconds)

    def forget(self) -> None:
        """Take back everything that was told; after ``end``."""
        for reflector in self.reflectors:
            reflector.forget()

    def _follow(self, reflector: Reflector) -> None:
        try:
            reflector.run(self._ended)
        except BaseException as error:  # passed on: a thread has nobody above it
            self._failed(error)

    def _one_listed(self) -> None:
        with self._lock:
            self._waiting -= 1
            whole = self._waiting == 0
        if whole:
            self._listed()
