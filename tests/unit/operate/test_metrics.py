"""The page: names, labels and values, as a scraper reads them."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ebpfnet.operate import metrics as shown
from ebpfnet.operate.metrics import Metrics, plain_field
from ebpfnet.operate.serve import Request
from ebpfnet.operate.snapshot import Attached, Conntrack, Decided, Packets, Refusal, Snapshot, TableUse, Traffic, Watch

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

SNAPSHOT = Snapshot(
    tables=(TableUse("slots", 30, 120), TableUse("drops", None, 16), TableUse("none", 0, 0)),
    forwarded=(Packets("from_pod", "network", 7),),
    dropped=(Packets("from_pod", "no_endpoints", 3),),
    traffic=(Traffic("default/web:http", 4, 50, 6000),),
    audited=(Packets("to_pod", "audited", 2),),
    decided=(Decided("NetworkPolicy default/web", "denied", 9),),
    conntrack=Conntrack(entries=10, sweeps=2, removed=4, duration_s=0.5, ended=6),
    watches=(Watch("services", 0.25, 1, 2, 3), Watch("pods", None, 0, 0, 0)),
    attached=(Attached("pod", "attached", 5),),
    refused=(Refusal("Service", "spec.ports[0].port"), Refusal("Service", "spec.ports[12].port")),
    pending_units=6,
    pending_services=1,
    pending_endpoints=2,
    events_dropped=8,
)


def made(snapshot=lambda: SNAPSHOT, **options) -> Metrics:
    return Metrics(snapshot, version="0.1", layout=3, **options)


def samples(metrics: Metrics) -> Samples:
    text = metrics.page(Request("/metrics", "")).body.decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.mark.parametrize(
    ("name", "labels", "want"),
    [
        ("ebpfnet_map_capacity", {"map": "slots"}, 120),
        ("ebpfnet_map_entries", {"map": "slots"}, 30),
        ("ebpfnet_map_pressure", {"map": "slots"}, 0.25),
        ("ebpfnet_map_capacity", {"map": "drops"}, 16),
        ("ebpfnet_forwarded_packets_total", {"hook": "from_pod", "outcome": "network"}, 7),
        ("ebpfnet_dropped_packets_total", {"hook": "from_pod", "reason": "no_endpoints"}, 3),
        ("ebpfnet_policy_audited_packets_total", {"hook": "to_pod"}, 2),
        ("ebpfnet_policy_hits_total", {"policy": "NetworkPolicy default/web", "verdict": "denied"}, 9),
        ("ebpfnet_conntrack_entries", {}, 10),
        ("ebpfnet_service_connections_total", {"service": "default/web:http"}, 4),
        ("ebpfnet_service_packets_total", {"service": "default/web:http"}, 50),
        ("ebpfnet_service_bytes_total", {"service": "default/web:http"}, 6000),
        ("ebpfnet_conntrack_sweeps_total", {}, 2),
        ("ebpfnet_conntrack_swept_entries_total", {}, 4),
        ("ebpfnet_conntrack_ended_entries_total", {}, 6),
        ("ebpfnet_conntrack_sweep_duration_seconds", {}, 0.5),
        ("ebpfnet_watch_lag_seconds", {"resource": "services"}, 0.25),
        ("ebpfnet_watch_restarts_total", {"resource": "services"}, 1),
        ("ebpfnet_watch_relists_total", {"resource": "services"}, 2),
        ("ebpfnet_watch_errors_total", {"resource": "services"}, 3),
        ("ebpfnet_interfaces", {"kind": "pod", "state": "attached"}, 5),
        ("ebpfnet_refused_objects", {"kind": "Service", "field": "spec.ports[].port"}, 2),
        ("ebpfnet_pending_units", {}, 6),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", {}, 1),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", {}, 2),
        ("ebpfnet_events_dropped_total", {}, 8),
    ],
)
def test_the_snapshot_is_shown(name: str, labels: dict[str, str], want: float):
    assert value(samples(made()), name, **labels) == want


def test_what_is_not_known_is_not_shown():
    found = samples(made())
    assert ("ebpfnet_map_entries", frozenset({("map", "drops")})) not in found
    assert ("ebpfnet_map_pressure", frozenset({("map", "none")})) not in found
    assert ("ebpfnet_watch_lag_seconds", frozenset({("resource", "pods")})) not in found
    assert not any("timestamp" in name for name, _ in found if name.startswith("kubeproxy"))


def test_programming_is_by_family():
    metrics = made()
    metrics.programmed(0.0015, "IPv6")
    found = samples(metrics)
    name = "kubeproxy_network_programming_duration_seconds"
    assert value(found, f"{name}_bucket", ip_family="IPv6", le="0.001") == 0
    assert value(found, f"{name}_bucket", ip_family="IPv6", le="0.002") == 1
    assert value(found, f"{name}_sum", ip_family="IPv6") == 0.0015
    assert value(found, f"{name}_count", ip_family="IPv4") == 0


def test_a_pass_is_shown_under_each_family_that_is_served():
    metrics = made(families=("IPv6",))
    metrics.queued(100)
    metrics.synced(0.00002, 101)
    found = samples(metrics)
    name = "kubeproxy_sync_proxy_rules"
    assert value(found, f"{name}_duration_seconds_bucket", ip_family="IPv6", le="3.125e-05") == 1
    assert value(found, f"{name}_last_queued_timestamp_seconds", ip_family="IPv6") == 100
    assert value(found, f"{name}_last_timestamp_seconds", ip_family="IPv6") == 101
    assert not any(("ip_family", "IPv4") in labels for _, labels in found)


def test_changes_operations_and_probes_are_counted():
    metrics = made()
    metrics.services_changed()
    metrics.endpoints_changed(3)
    metrics.operation("slots", "put", "E2BIG", 2)
    metrics.probed("/healthz", "503")
    metrics.probed("/livez", "200")
    found = samples(metrics)
    assert value(found, "kubeproxy_sync_proxy_rules_service_changes_total") == 1
    assert value(found, "kubeproxy_sync_proxy_rules_endpoint_changes_total") == 3
    assert value(found, "ebpfnet_map_operations_total", map="slots", operation="put", outcome="E2BIG") == 2
    assert value(found, "kubeproxy_proxy_healthz_total", code="503") == 1
    assert value(found, "kubeproxy_proxy_livez_total", code="200") == 1


def test_the_page_says_what_runs():
    [labels] = [dict(labels) for name, labels in samples(made()) if name == "ebpfnet_build_info"]
    assert (labels["version"], labels["layout"]) == ("0.1", "3")


def test_a_snapshot_that_fails_leaves_the_rest(caplog: pytest.LogCaptureFixture):
    def broken() -> Snapshot:
        raise OSError("the map is gone")

    metrics = made(broken)
    metrics.services_changed()
    found = samples(metrics)
    assert value(found, "kubeproxy_sync_proxy_rules_service_changes_total") == 1
    assert value(found, "ebpfnet_metrics_read_failures_total") == 1
    assert "the map is gone" in caplog.text


def test_nothing_is_read_before_somebody_asks():
    asked: list[int] = []

    def snapshot() -> Snapshot:
        asked.append(1)
        return Snapshot()

    metrics = made(snapshot)
    assert not asked
    samples(metrics)
    assert len(asked) == 1


def test_openmetrics_when_it_is_asked_for():
    response = made().page(Request("/metrics", "application/openmetrics-text; version=1.0.0"))
    assert response.media_type.startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("field", "plain"),
    [
        ("spec.ports[0].port", "spec.ports[].port"),
        ("spec.a[1].b[22]", "spec.a[].b[]"),
        ("metadata.annotations[example.com/x]", "metadata.annotations[]"),
        ("(object)", "(object)"),
        ("x" * 500, "x" * shown.FIELD_LENGTH_MAX),
    ],
)
def test_a_field_without_indexes(field: str, plain: str):
    assert plain_field(field) == plain


def test_refused_fields_are_bounded():
    refused = tuple(Refusal("Service", f"made.up.{number:04}") for number in range(1000))
    found = samples(made(lambda: Snapshot(refused=refused)))
    rows = {labels: count for (name, labels), count in found.items() if name == "ebpfnet_refused_objects"}
    assert len(rows) == shown.REFUSED_FIELDS_MAX + 1
    assert sum(rows.values()) == 1000
