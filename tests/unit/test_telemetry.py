"""What an agent tells of itself."""

from __future__ import annotations

from unittest import mock

from ebpfnet.model.facts import Delete, Kind, NetworkPolicy, Ref, Upsert
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.telemetry import Settings, Telemetry

POLICY = NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "web"), EVERYTHING, ())
OTHER = NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "other"), EVERYTHING, ())


def test_a_policy_that_is_held_back_is_not_counted_as_enforced_until_it_is():
    telemetry = Telemetry(Settings(), {}, mock.Mock(), list)
    with mock.patch.object(telemetry.metrics, "enforced") as enforced:
        telemetry.applied([Upsert(POLICY), Upsert(OTHER)], 1.0, 2.0, late=False, behind={POLICY.ref})
        assert enforced.call_count == 1
        telemetry.settled(late=False, behind={POLICY.ref})
        telemetry.settled(late=True)
        assert enforced.call_count == 1
        telemetry.settled(late=False)
        telemetry.settled(late=False)
        assert enforced.call_count == 2
        telemetry.applied([Delete(POLICY.ref)], 3.0, 4.0, late=False)
        assert enforced.call_count == 3
