"""What an agent tells of itself: health, metrics and Events, joined from the rooms that know.

The hot path calls ``begin`` and ``applied``; all else is asked for when a probe, a scraper or a timer comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ebpfnet import __version__, abi
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps.kernel import KernelTable
from ebpfnet.maps.percpu import totals
from ebpfnet.model.facts import (
    Change,
    ClusterNetworkPolicy,
    Delete,
    EndpointSlice,
    Kind,
    NetworkPolicy,
    Problem,
    Ref,
    Service,
    Upsert,
)
from ebpfnet.operate import serve
from ebpfnet.operate.events import Recorder
from ebpfnet.operate.health import Health
from ebpfnet.operate.metrics import Metrics
from ebpfnet.operate.snapshot import Attached, Conntrack, Packets, Refusal, Snapshot, TableUse, Watch
from ebpfnet.reconcile.sweep import Swept
from ebpfnet.traffic import decided, traffic
from ebpfnet.watch.source import Stats

log = logging.getLogger(__name__)

WORDS = {"spec.healthCheckNodePort": {"reason": "FailedToStartServiceHealthcheck", "action": "Listen"}}
"""What kube-proxy's Events say, where it has one for the field."""

POLICIES = {Kind.NETWORK_POLICY, Kind.CLUSTER_NETWORK_POLICY}
AUDITED = abi.DropReason.AUDITED.name.lower()
FILLED = {abi.MapType.HASH, abi.MapType.LRU_HASH}  # an array is always full


class Settings(NamedTuple):
    """Where to listen, and what counts as late. ``hard_fail``: an address that is taken ends the agent."""

    metrics_bind_address: str = "127.0.0.1:10249"
    healthz_bind_address: str = "0.0.0.0:10256"
    hard_fail: bool = False
    sync_period_s: float = 30.0
    metrics_services: int = 100
    """How many services have rows of their own in metrics; the others are one row."""
    metrics_policies: int = 100
    """The same of policies."""


class Counted(NamedTuple):
    """What only the agent knows, read under its lock."""

    used: Mapping[str, int]
    problems: Sequence[Problem]
    pending: int
    attached: tuple[Attached, ...]


class Telemetry:
    """Health, metrics and Events of one agent."""

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[str, KernelTable],
        counted: Callable[[], Counted],
        watches: Callable[[], Sequence[Stats]],
        recorder: Recorder | None = None,
    ) -> None:
        self.metrics = Metrics(self._snapshot, version=__version__, layout=abi.LAYOUT_VERSION)
        self.health = Health(2 * settings.sync_period_s)
        self._settings = settings
        self._tables = tables
        self._counted = counted
        self._watches = watches
        self._recorder = recorder
        self._started = time.time()
        self._conntrack: Conntrack | None = None
        self._servers: list[serve.Server] = []
        self._unenforced: dict[Ref, float] = {}  # when the events of policies were read that may not judge yet

    def listen(self) -> None:
        """Serve metrics and health; with ``hard_fail`` raises ``EbpfnetError`` for an address that can't be used."""
        settings = self._settings
        for flag, address, port, routes in (
            ("--metrics-bind-address", settings.metrics_bind_address, serve.METRICS_PORT, self.metrics.routes()),
            (
                "--healthz-bind-address",
                settings.healthz_bind_address,
                serve.HEALTHZ_PORT,
                self.health.routes(count=self.metrics.probed),
            ),
        ):
            try:
                server = serve.serve(address, routes, flag=flag, default_port=port)
            except EbpfnetError as error:
                if settings.hard_fail:
                    raise
                log.error("%s; going on without it", error)  # noqa: TRY400  # an operator's business, no bug
            else:
                self._servers += [server] if server else []

    def close(self) -> None:
        """Stop serving."""
        for server in self._servers:
            server.close()

    # What the agent tells

    def begin(self) -> float:
        """Say that something is there to be written; returns when that was, for ``applied``."""
        self.health.queued(time.monotonic())
        self.metrics.queued(time.time())
        return time.perf_counter()

    def applied(
        self, changes: Collection[Change], began: float, read_at: float, *, late: bool, behind: Collection[Ref] = ()
    ) -> None:
        """Say that changes were written whose events were read at ``read_at``; ``late``: not all of them could be.

        ``behind`` are policies that are not enforced as they came last, be it for want of room.
        """
        now = time.time()
        for change in changes:
            match change:
                case Upsert(NetworkPolicy(ref) | ClusterNetworkPolicy(ref)):
                    self._unenforced[ref] = read_at or began
                case Delete(ref) if ref.kind in POLICIES:
                    self._unenforced[ref] = read_at or began
                case Upsert(EndpointSlice(ipv6=ipv6), since):
                    self.metrics.endpoints_changed()
                    if since > self._started and not late:  # kube-proxy leaves out what happened before it, too
                        self.metrics.programmed(max(0.0, now - since), "IPv6" if ipv6 else "IPv4")
                case Upsert(Service()):
                    self.metrics.services_changed()
                case Delete(ref) if ref.kind == Kind.SERVICE:
                    self.metrics.services_changed()
                case Delete(ref) if ref.kind == Kind.ENDPOINT_SLICE:
                    self.metrics.endpoints_changed()
        done = time.perf_counter()
        self.metrics.synced(done - began, now)
        if read_at:
            self.metrics.written(done - read_at)
        self.settled(late=late, behind=behind)

    def settled(self, *, late: bool, behind: Collection[Ref] = ()) -> None:
        """Say whether everything that was queued is written now, or named because it can't be."""
        if late:
            return
        self.health.updated(time.monotonic())
        done = time.perf_counter()
        for ref in [each for each in list(self._unenforced) if each not in behind]:
            since = self._unenforced.pop(ref, None)
            if since is not None:  # the watch and the main thread both come by
                self.metrics.enforced(done - since)

    def swept(self, swept: Swept, duration_s: float) -> None:
        """Take the figures of a sweep of the flow table in."""
        before = self._conntrack or Conntrack(0, 0, 0, 0.0)
        removed, ended = before.removed + swept.removed, before.ended + swept.ended
        self._conntrack = Conntrack(swept.seen - swept.removed, before.sweeps + 1, removed, duration_s, ended)

    def tell(self, problem: Problem) -> None:
        """Make an Event of a problem, where there is an API server to take it."""
        if self._recorder is not None:
            self._recorder.report(problem, **WORDS.get(problem.field, {}))

    def tend(self) -> None:
        """Finish Events that are not met any more; to be called now and then."""
        if self._recorder is not None:
            self._recorder.tend()

    # What is asked for

    def _snapshot(self) -> Snapshot:
        counted = self._counted()
        used = dict(counted.used)
        if self._conntrack is not None:
            used["flows"] = self._conntrack.entries
        dropped = list(self._packets("drops", abi.DROP_MAX, abi.DropReason))
        return Snapshot(
            tables=tuple(
                TableUse(name, used.get(name), table.spec.max_entries)
                for name, table in self._tables.items()
                if table.spec.type in FILLED
            ),
            forwarded=tuple(self._packets("forwards", len(abi.Outcome), abi.Outcome)),
            dropped=tuple(each for each in dropped if each.what != AUDITED),
            audited=tuple(each for each in dropped if each.what == AUDITED),
            decided=tuple(decided(self._tables, self._settings.metrics_policies)),
            traffic=tuple(traffic(self._tables, self._settings.metrics_services)),
            conntrack=self._conntrack,
            watches=tuple(
                Watch(each.resource, each.lag_s, max(0, each.watches - 1), max(0, each.lists - 1), each.failures)
                for each in self._watches()
            ),
            attached=counted.attached,
            refused=tuple(Refusal(str(problem.ref.kind), problem.field) for problem in counted.problems),
            pending_units=counted.pending,
            pending_services=counted.pending,
            events_dropped=self._recorder.dropped if self._recorder else 0,
        )

    def _packets(self, table: str, per_hook: int, names: type[abi.Outcome | abi.DropReason]) -> Iterable[Packets]:
        for key, value in self._tables[table].items():
            packets, _ = totals(value, abi.Counter)
            if packets:
                hook, what = divmod(int.from_bytes(key, "little"), per_hook)
                yield Packets(abi.Hook(hook).name.lower(), names(what).name.lower(), packets)
