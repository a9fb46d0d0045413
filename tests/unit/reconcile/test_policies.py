"""Policies and other nodes' pods reach the model; nothing is written for them."""

from __future__ import annotations

import ipaddress

from ebpfnet import abi
from ebpfnet.model.facts import Delete, Kind, NetworkPolicy, Peer, PeersKnown, PodPeer, PolicyRule, Ref, Synced, Upsert
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import memory_tables, pod, writes

POLICY = NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "p"), EVERYTHING, (PolicyRule((PodPeer(EVERYTHING),)),))
PEER = Peer(Ref(Kind.PEER, "default", "far"), (), abi.pack_address(ipaddress.ip_address("10.2.0.1")))


def test_policies_and_peers_come_and_go():
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a")
    cluster = reconciler.cluster
    reconciler.apply([Upsert(pod("near", "10.1.0.1")), Synced()])
    before = writes(tables)
    reconciler.apply([PeersKnown(known=False), Upsert(POLICY), Upsert(PEER)])
    assert (Kind.PEER in cluster.needed, len(cluster.peers), cluster.peers_known) == (True, 2, False)
    reconciler.apply([Delete(POLICY.ref), Delete(PEER.ref), PeersKnown(known=True)])
    assert (Kind.PEER in cluster.needed, len(cluster.peers), cluster.peers_known) == (False, 1, True)
    assert writes(tables) == before
