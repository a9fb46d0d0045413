"""The page of metrics: kube-proxy's names where they mean the same, ``ebpfnet_…`` for the rest.

Source of names and labels: kubernetes pkg/proxy/metrics/metrics.go and the reference of metrics (ip_family). kube-proxy
has one proxier a family and each syncs on its own; here one pass writes both, so a pass is shown under each family.
What costs the hot path anything is in ``tally``; everything else is asked for when the page is (``Snapshot``).
"""

from __future__ import annotations

import logging
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ebpfnet.operate.serve import Handler, Request, Response
from ebpfnet.operate.snapshot import Refusal, Snapshot
from ebpfnet.operate.tally import OTHER, Histogram, Tally

log = logging.getLogger(__name__)

FAMILIES = ("IPv4", "IPv6")
PROGRAMMING_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0),
)
"""kube-proxy begins at 250 ms, which is where a slow one of ours ends; from 1 s on they are some of its own."""
SYNC_BOUNDS_S = tuple(0.001 * 2**power for power in range(-5, 15))
"""kube-proxy's fifteen, 1 ms to 16 s, and five below them: 31 µs and up."""
WRITTEN_BOUNDS_S = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
REFUSED_FIELDS_MAX = 100
FIELD_LENGTH_MAX = 100

Rows = Iterable[tuple[tuple[str, ...], float]]


class Metrics:
    """Everything that is counted, and the page. Methods are thread-safe and cheap enough for each event (~1 µs)."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        version: str,
        layout: int,
        families: tuple[str, ...] = FAMILIES,
    ) -> None:
        """``version`` is ours, ``layout`` the tables' (``LAYOUT_VERSION``); ``families`` are those that are served."""
        self._snapshot = snapshot
        self._families = families
        self._build = (version, str(layout), platform.python_version(), platform.release())
        self._programming = {family: Histogram(PROGRAMMING_BOUNDS_S) for family in FAMILIES}
        self._sync = Histogram(SYNC_BOUNDS_S)
        self._written = Histogram(WRITTEN_BOUNDS_S)
        self._enforced = Histogram(WRITTEN_BOUNDS_S)
        self._synced: float | None = None
        self._queued: float | None = None
        self._service_changes = Tally()
        self._endpoint_changes = Tally()
        self._operations = Tally()
        self._probes = Tally()
        self._failures = Tally()
        self._service_changes.add(by=0)
        self._endpoint_changes.add(by=0)
        self._failures.add(by=0)
        self.registry = CollectorRegistry()
        self.registry.register(_Collected(self._collect))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    # What the agent tells

    def programmed(self, seconds: float, family: str) -> None:
        """Count an endpoint slice ("IPv4" or "IPv6") that is in the kernel ``seconds`` after its pods changed."""
        self._programming[family].observe(seconds)

    def queued(self, now: float) -> None:
        """Note that there is something to write; ``now`` in seconds since 1970."""
        self._queued = now

    def synced(self, duration_s: float, now: float) -> None:
        """Count a pass that wrote what there was; ``now`` in seconds since 1970."""
        self._sync.observe(duration_s)
        self._synced = now

    def written(self, seconds: float) -> None:
        """Count events of a watch that are in the kernel ``seconds`` after they were read."""
        self._written.observe(seconds)

    def enforced(self, seconds: float) -> None:
        """Count a policy that is enforced ``seconds`` after its event was read."""
        self._enforced.observe(seconds)

    def services_changed(self, count: int = 1) -> None:
        """Count services that came, went or changed."""
        self._service_changes.add(by=count)

    def endpoints_changed(self, count: int = 1) -> None:
        """Count endpoint slices that came, went or changed."""
        self._endpoint_changes.add(by=count)

    def operation(self, table: str, operation: str, outcome: str, count: int = 1) -> None:
        """Count operations on a table: ("slots", "put_batch", "ok"), or as outcome the name of an errno."""
        self._operations.add((table, operation, outcome), count)

    def probed(self, path: str, code: str) -> None:
        """Count an answer of ``/healthz`` or ``/livez`` (``Health.routes`` calls this)."""
        self._probes.add((path, code))

    # What is shown

    def page(self, request: Request) -> Response:
        """Answer ``/metrics`` in the format that is asked for: Prometheus' text, or OpenMetrics."""
        encoder, media_type = choose_encoder(request.accept)
        return Response(200, encoder(self.registry), media_type)

    def routes(self) -> dict[str, Handler]:
        """Return what to ``serve``."""
        return {"/metrics": self.page}

    def _collect(self) -> Iterator[Metric]:
        yield from self._own()
        try:
            snapshot = self._snapshot()
        except Exception:  # what the agent counts itself is shown still, and the page says that something is missing
            log.exception("read metrics")
            self._failures.add()
        else:
            yield from _of_snapshot(snapshot)
        yield _counter("ebpfnet_metrics_read_failures", "Pages that lack the agent's state.", (), self._failures.read())

    def _own(self) -> Iterator[Metric]:
        labels = ("version", "layout", "python", "kernel")
        yield _gauge("ebpfnet_build_info", "What runs here; always 1.", labels, [(self._build, 1)])
        yield _histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of a pod or service to its being in the kernel.",
            [(family, self._programming[family]) for family in self._families],
        )
        yield _histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long a pass over what changed took.",
            [(family, self._sync) for family in self._families],
        )
        written = HistogramMetricFamily(
            "ebpfnet_watch_to_map_duration_seconds", "From an event's being read to its being in the kernel.", labels=()
        )
        written.add_metric((), *self._written.read())
        yield written
        enforced = HistogramMetricFamily(
            "ebpfnet_policy_enforcement_duration_seconds",
            "From a policy's being read from the watch to its being enforced.",
            labels=(),
        )
        enforced.add_metric((), *self._enforced.read())
        yield enforced
        for what, text, when in (
            ("last", "When a pass wrote everything last, in seconds since 1970.", self._synced),
            ("last_queued", "When something was there to write last, in seconds since 1970.", self._queued),
        ):
            rows = [] if when is None else [((family,), when) for family in self._families]
            yield _gauge(f"kubeproxy_sync_proxy_rules_{what}_timestamp_seconds", text, ("ip_family",), rows)
        for what, tally in (("service", self._service_changes), ("endpoint", self._endpoint_changes)):
            name = f"kubeproxy_sync_proxy_rules_{what}_changes"
            yield _counter(name, f"Changes of {what}s that were seen.", (), tally.read())
        for probe in ("healthz", "livez"):
            answers = [((code,), count) for (path, code), count in self._probes.read() if path == f"/{probe}"]
            yield _counter(f"kubeproxy_proxy_{probe}", f"Answers of /{probe} by HTTP status.", ("code",), answers)
        yield _counter(
            "ebpfnet_map_operations",
            "Operations on maps; outcome is ok or an errno.",
            ("map", "operation", "outcome"),
            self._operations.read(),
        )


class _Collected(Collector):
    """Hands a function to the registry; without ``describe``, so that registering reads nothing."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._function = collect

    def collect(self) -> Iterator[Metric]:
        return self._function()


def _of_snapshot(now: Snapshot) -> Iterator[Metric]:
    capacity = [((use.table,), float(use.capacity)) for use in now.tables]
    entries = [((use.table,), float(use.entries)) for use in now.tables if use.entries is not None]
    room = dict(capacity)
    pressure = [(name, taken / room[name]) for name, taken in entries if room[name]]
    yield _gauge("ebpfnet_map_capacity", "Entries a map can hold.", ("map",), capacity)
    yield _gauge("ebpfnet_map_entries", "Entries in a map.", ("map",), entries)
    yield _gauge("ebpfnet_map_pressure", "How full a map is, 0 to 1.", ("map",), pressure)
    for name, text, label, packets in (
        ("ebpfnet_forwarded_packets", "Packets that went on, by outcome.", "outcome", now.forwarded),
        ("ebpfnet_dropped_packets", "Packets that were dropped or rejected, by reason.", "reason", now.dropped),
    ):
        yield _counter(name, text, ("hook", label), [((each.hook, each.what), each.packets) for each in packets])
    audited = "Packets of new connections that went on, and that a policy in audit mode would have dropped."
    would = [((each.hook,), float(each.packets)) for each in now.audited]
    yield _counter("ebpfnet_policy_audited_packets", audited, ("hook",), would)
    decided = [((each.policy, each.verdict), float(each.times)) for each in now.decided]
    text = "What policies decided: allowed and audited by connection, denied by packet."
    yield _counter("ebpfnet_policy_hits", text, ("policy", "verdict"), decided)
    for what in ("connections", "packets", "bytes"):
        rows = [((each.service,), float(getattr(each, what))) for each in now.traffic]
        text = f"{what.capitalize()} through a service, both directions together."
        yield _counter(f"ebpfnet_service_{what}", text, ("service",), rows)
    if now.conntrack is not None:
        flows = now.conntrack
        yield _gauge("ebpfnet_conntrack_entries", "Flow entries, at the last sweep.", (), [((), flows.entries)])
        yield _counter("ebpfnet_conntrack_sweeps", "Sweeps of the flow table.", (), [((), flows.sweeps)])
        yield _counter("ebpfnet_conntrack_swept_entries", "Flow entries swept away.", (), [((), flows.removed)])
        text = "Flow entries that sweeps marked for the end of their connections: their backends are gone."
        yield _counter("ebpfnet_conntrack_ended_entries", text, (), [((), flows.ended)])
        took = "ebpfnet_conntrack_sweep_duration_seconds"
        yield _gauge(took, "How long the last sweep took.", (), [((), flows.duration_s)])
    lag = [((each.resource,), each.lag_s) for each in now.watches if each.lag_s is not None]
    yield _gauge("ebpfnet_watch_lag_seconds", "How far a watch is behind.", ("resource",), lag)
    for what, text in (("restarts", "began anew"), ("relists", "listed everything anew"), ("errors", "failed")):
        rows = [((each.resource,), float(getattr(each, what))) for each in now.watches]
        yield _counter(f"ebpfnet_watch_{what}", f"How often a watch {text}.", ("resource",), rows)
    states = [((each.kind, each.state), each.interfaces) for each in now.attached]
    yield _gauge("ebpfnet_interfaces", "Interfaces by kind and state of attachment.", ("kind", "state"), states)
    refused = "Objects refused now, by kind and field; indexes are left out."
    yield _gauge("ebpfnet_refused_objects", refused, ("kind", "field"), _refused(now.refused))
    yield _gauge("ebpfnet_pending_units", "Units not in the kernel as they should be.", (), [((), now.pending_units)])
    for what, count in (("service", now.pending_services), ("endpoint", now.pending_endpoints)):
        name = f"kubeproxy_sync_proxy_rules_{what}_changes_pending"
        yield _gauge(name, f"Changes of {what}s that are not written yet.", (), [((), count)])
    yield _counter("ebpfnet_events_dropped", "Events held back by the rate limit.", (), [((), now.events_dropped)])


def plain_field(path: str) -> str:
    """Return a field's path without indexes and keys: ``spec.ports[3].port`` is ``spec.ports[].port``."""
    return re.sub(r"\[[^]]*\]", "[]", path)[:FIELD_LENGTH_MAX]


def _refused(refusals: Iterable[Refusal]) -> Rows:
    """Count by kind and plain field; beyond ``REFUSED_FIELDS_MAX`` of them a kind's rest is one row."""
    counts = Counter((each.kind, plain_field(each.field)) for each in refusals)
    rows: Counter[tuple[str, str]] = Counter()
    for place, ((kind, field), count) in enumerate(sorted(counts.items())):
        rows[kind, field if place < REFUSED_FIELDS_MAX else OTHER] += count
    return rows.items()


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    """Return a counter; the page adds ``_total`` to its name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, rows: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("ip_family",))
    for value, histogram in rows:
        buckets, total = histogram.read()
        family.add_metric((value,), buckets, total)
    return family
