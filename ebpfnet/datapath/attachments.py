"""Programs on their interfaces, and kept there: who takes one off, or makes an uplink anew, is answered within seconds.

What is wanted is told by ``serve`` and ``forget``; what is there is read from the kernel, whenever it says that filters
or interfaces changed. What the kernel refuses is tried again with growing patience, and named until it works.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from pyroute2 import IPRoute

from ebpfnet.datapath import attach
from ebpfnet.datapath.load import Program
from ebpfnet.datapath.loopback import IFINDEX
from ebpfnet.datapath.netlink import FILTERS, LINKS, Changes
from ebpfnet.exits import NotRunning

log = logging.getLogger(__name__)

PAUSE_S = 0.5  # between two looks, however much changes
WAKE_S = 0.5
FIRST_S, MAX_S = 1.0, 60.0


class Attachments:
    """What is on which interface (by number). Safe to use from several threads; who only reads waits for nobody."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        uplinks: Callable[[], list[int]],
        names: Iterable[str],
        fixed: Mapping[int, tuple[str, ...]],
    ) -> None:
        """``uplinks`` finds the interfaces that carry the programs ``names``, again whenever something changed.

        ``fixed`` are interfaces with programs of their own that are always there: loopback.
        """
        self._programs = programs
        self._find_uplinks = uplinks
        self._on_uplink = tuple(names)
        self._fixed = dict(fixed)
        self._lock = threading.Lock()
        self._uplinks: list[int] = []
        self._wanted: dict[int, tuple[str, ...]] = {}
        self._failed: dict[int, str] = {}
        self._patience = FIRST_S

    def serve_uplinks(self) -> None:
        """Put programs on uplinks and loopback; raises ``AttachFailed``, ``NotRunning`` for one that is not there."""
        with self._lock:
            self._uplinks = self._find_uplinks()
            for ifindex, names in (dict.fromkeys(self._uplinks, self._on_uplink) | self._fixed).items():
                self._attach(ifindex, names)
                self._wanted[ifindex] = names

    def serve(self, ifindex: int, names: tuple[str, ...]) -> bool:
        """Have programs on an interface; False while the kernel refuses."""
        with self._lock:
            if self._wanted.get(ifindex) != names:
                self._wanted[ifindex] = names
                self._try(ifindex)
            return ifindex in self._wanted and ifindex not in self._failed

    def forget(self, ifindexes: Iterable[int]) -> None:
        """Want nothing any more on interfaces that are gone."""
        with self._lock:
            for ifindex in ifindexes:
                self._wanted.pop(ifindex, None)
                self._failed.pop(ifindex, None)

    def on(self, ifindex: int) -> list[str]:
        """Return the programs that an interface has."""
        return list(self._wanted.get(ifindex, ())) if ifindex not in self._failed else []

    @property
    def wanted(self) -> dict[int, tuple[str, ...]]:
        """Every interface, and the programs that it should have."""
        return dict(self._wanted)

    @property
    def failed(self) -> dict[int, str]:
        """The interfaces that do not have their programs, and why."""
        return dict(self._failed)

    def counted(self, wires: Collection[int]) -> Iterator[tuple[str, str, int]]:
        """Yield how many interfaces of a kind ("pod", "loopback", "uplink") are in a state ("attached", "failed")."""
        kinds = {each: "pod" if each in wires else "uplink" for each in self.wanted}
        if IFINDEX in kinds:
            kinds[IFINDEX] = "loopback"
        for kind in ("pod", "loopback", "uplink"):
            of_kind = {each for each, found in kinds.items() if found == kind}
            yield kind, "attached", len(of_kind - self.failed.keys())
            yield kind, "failed", len(of_kind & self.failed.keys())

    def keep(self, changed: Callable[[], None], stop: threading.Event) -> None:
        """Look after every change of filters or interfaces until ``stop`` is set; call ``changed`` when it mattered."""
        with Changes(groups=FILTERS | LINKS) as changes, IPRoute() as ip:
            while not stop.is_set():
                if self.repair(ip):
                    changed()
                stop.wait(PAUSE_S)
                again = time.monotonic() + self._patience
                while not stop.is_set() and not changes.wait(WAKE_S):
                    if self.failed and time.monotonic() > again:
                        break

    def repair(self, ip: IPRoute) -> bool:
        """Put programs back where they are missing; returns whether what is served changed."""
        with self._lock:
            before = dict(self._failed)
            self._follow_uplinks()
            restored = 0
            for ifindex, names in list(self._wanted.items()):
                if ifindex in self._failed or not set(names) <= set(attach.attached(ip, ifindex)):
                    self._try(ifindex)
                    restored += ifindex in self._wanted and ifindex not in self._failed
            if restored:
                log.warning("programs were missing from %d interfaces; they are back", restored)
            self._patience = min(MAX_S, self._patience * 2) if self._failed else FIRST_S
            return bool(restored) or self._failed != before

    def _follow_uplinks(self) -> None:
        """An uplink that was made anew has another number."""
        try:
            now = self._find_uplinks()
        except NotRunning:  # gone for the moment
            return
        if now != self._uplinks:
            for gone in set(self._uplinks) - set(now):
                self._wanted.pop(gone, None)
                self._failed.pop(gone, None)
            self._wanted.update(dict.fromkeys(now, self._on_uplink))
            self._uplinks = now

    def _try(self, ifindex: int) -> None:
        try:
            self._attach(ifindex, self._wanted[ifindex])
        except attach.AttachFailed as error:
            if getattr(error.__cause__, "code", 0) == errno.ENODEV:  # gone: whoever follows interfaces will say so
                del self._wanted[ifindex]
                self._failed.pop(ifindex, None)
                return
            self._failed[ifindex] = str(error)
        else:
            self._failed.pop(ifindex, None)

    def _attach(self, ifindex: int, names: tuple[str, ...]) -> None:
        attach.attach(ifindex, [self._programs[name] for name in names])
