"""What a cluster keeps of what no unit of its own is compiled from."""

from __future__ import annotations

import ipaddress

from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Kind, Ref, ServiceCIDR


def blocks(name: str, *cidrs: str) -> ServiceCIDR:
    return ServiceCIDR(Ref(Kind.SERVICE_CIDR, "", name), tuple(map(ipaddress.ip_network, cidrs)))


def test_the_blocks_of_cluster_ips_are_all_objects_in_one_order():
    """Whatever came first, and each once: blocks of two objects may be the same."""
    first, second = blocks("kubernetes", "10.96.0.0/16", "fd00::/112"), blocks("more", "10.95.0.0/16")
    same = blocks("again", "10.96.0.0/16")
    forwards, backwards = Cluster("a"), Cluster("a")
    for each in (first, second, same):
        forwards.note(each)
    for each in (same, second, first):
        backwards.note(each)
    assert list(map(str, forwards.service_cidrs)) == ["10.95.0.0/16", "10.96.0.0/16", "fd00::/112"]
    assert backwards.service_cidrs == forwards.service_cidrs


def test_blocks_that_are_gone_or_other_ones_now():
    cluster = Cluster("a")
    assert cluster.service_cidrs == ()
    cluster.note(blocks("kubernetes", "10.96.0.0/16"))
    cluster.note(blocks("more", "10.95.0.0/16"))
    cluster.note(blocks("more", "10.94.0.0/16"))
    cluster.forget(blocks("kubernetes").ref)
    cluster.forget(blocks("never").ref)
    assert list(map(str, cluster.service_cidrs)) == ["10.94.0.0/16"]
