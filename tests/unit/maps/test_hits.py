"""Whose rule is it, by its name."""

from __future__ import annotations

import pytest

from ebpfnet.maps.hits import direction_of, policies_of


@pytest.mark.parametrize(
    ("name", "direction", "policies"),
    [
        ("NetworkPolicy default/web, ingress[1]", "ingress", ("NetworkPolicy default/web",)),
        ("ClusterNetworkPolicy deny (Admin), egress[0] (no-dns)", "egress", ("ClusterNetworkPolicy deny",)),
        ("ClusterNetworkPolicy x (Baseline), refused: ingress[0]", "ingress", ("ClusterNetworkPolicy x",)),
        (
            "isolated for egress by NetworkPolicy a/b, a/c (refused)",
            "egress",
            ("NetworkPolicy a/b", "NetworkPolicy a/c"),
        ),
        ("isolated for ingress by NetworkPolicy a/b and 12 more", "ingress", ("NetworkPolicy a/b",)),
        ("default/web:http", "", ()),
        ("", "", ()),
    ],
)
def test_policies_and_direction(name: str, direction: str, policies: tuple[str, ...]):
    assert direction_of(name) == direction
    assert policies_of(name) == policies
