"""The API server as a source: a thread for each resource, and one ``Synced`` when all have their first list.

Other nodes' pods, and these nodes, are followed apart, on demand (``peers.py``); ``Synced`` does not wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import replace

from ebpfnet.model.facts import Accepted, Change, Delete, Kind, Node, Problem, Ref, Refused, Synced, Upsert
from ebpfnet.watch.decode import HEADLESS, PROXY_NAME
from ebpfnet.watch.kube.connection import Api
from ebpfnet.watch.kube.group import Group
from ebpfnet.watch.kube.peers import PeerWatch
from ebpfnet.watch.kube.reflector import IDLE_S, Resource
from ebpfnet.watch.source import HIDES, Deliver, Stats

END_S = 2.0
CLUSTER_POLICIES = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"


def resources(node: str, proxy_name: str = "") -> list[Resource]:
    """Return what an agent follows: services, slices that are ours to serve, and of pods and nodes its own.

    A service labelled with another proxy's name is left to that proxy, as kube-proxy does (KEP-2447); that its cluster
    IPs are allocated must be known all the same.
    """
    ours = f"{PROXY_NAME}={proxy_name}" if proxy_name else f"!{PROXY_NAME}"
    return [
        Resource(Kind.SERVICE, "/api/v1/services", proxy_name=proxy_name),
        Resource(Kind.ENDPOINT_SLICE, "/apis/discovery.k8s.io/v1/endpointslices", labels=f"{ours},!{HEADLESS}"),
        Resource(Kind.POD, "/api/v1/pods", fields=f"spec.nodeName={node}"),
        # Which of our pods a cluster's policy is for, and who their peers on this node are, is not known without their
        # namespaces' labels: found out after ``Synced``, it would open what was shut before a restart.
        Resource(Kind.NAMESPACE, "/api/v1/namespaces"),
        Resource(Kind.NETWORK_POLICY, "/apis/networking.k8s.io/v1/networkpolicies"),
        Resource(Kind.CLUSTER_NETWORK_POLICY, CLUSTER_POLICIES, optional=True),
        Resource(Kind.NODE, "/api/v1/nodes", fields=f"metadata.name={node}"),
        # Kubernetes has these since 1.33; before, only the flags of the control plane say it (KEP-1880).
        Resource(Kind.SERVICE_CIDR, "/apis/networking.k8s.io/v1/servicecidrs", optional=True),
    ]


def peer_resources(node: str) -> list[Resource]:
    """Return what is followed only while a policy of a pod of this node needs it."""
    return [
        Resource(Kind.PEER, "/api/v1/pods", fields=f"spec.nodeName!={node}", name="peers"),
        Resource(Kind.NODE, "/api/v1/nodes", fields=f"metadata.name!={node}", name="other-nodes"),
    ]


def _as_policies_see(change: Change) -> Change:
    if isinstance(change, Upsert) and isinstance(change.fact, Node):
        return Upsert(replace(change.fact, pod_cidrs=()), change.since)
    return change


class KubeSource:
    """Follows an API server. Changes of one resource come in order, from a thread of that resource's own."""

    def __init__(
        self,
        api: Api,
        node: str,
        followed: Sequence[Resource],
        peers: Sequence[Resource] = (),
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        self._api = api
        self._node = Ref(Kind.NODE, "", node)
        self._node_known = all(each.kind != Kind.NODE for each in followed)
        self._lock = threading.Lock()
        self._listing = True  # the first lists
        self._unknown: set[Ref] = set()  # refused in the first lists: what the tables hold of these is not known
        self._incomplete = False  # whether that was told
        self._deliver: Deliver
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._group = Group(api, followed, self._pass_on, self._listed, self._failed, idle_s)
        self._peers = PeerWatch(api, peers, self._pass_on_others, self._failed, idle_s)

    @property
    def stats(self) -> list[Stats]:
        """What became of each resource so far."""
        return self._group.stats + self._peers.stats

    def want(self, kinds: Collection[Kind]) -> None:
        """Say which kinds of those that are followed on demand are needed; only takes a note."""
        self._peers.want(kinds)

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver everything, ``Synced``, and every change until ``stop`` is set.

        ``deliver`` is called from several threads, never from two for one resource. Raises what ended one of them.
        """
        self._deliver, self._stop = deliver, stop
        self._peers.start()
        self._group.start()
        stop.wait()
        self._api.close()
        self._group.end(END_S)
        self._peers.end(END_S)
        if self._failures:
            raise self._failures[0]

    def _failed(self, error: BaseException) -> None:
        self._failures.append(error)
        self._stop.set()

    def _pass_on(self, changes: list[Change], read_at: float = 0.0) -> None:
        if not self._node_known and any(isinstance(each, Upsert) and each.fact.ref == self._node for each in changes):
            self._node_known = True
            changes = [*changes, Accepted(self._node)]
        self._deliver(changes, read_at)
        if self._listing or self._incomplete:
            self._note_unknown(changes)

    def _pass_on_others(self, changes: list[Change], read_at: float = 0.0) -> None:
        """Pass on what is followed on demand: services must not be served in another way because a policy means nodes.

        So of other nodes comes what policies see; whose clients are in the cluster is told by ``--cluster-cidr``.
        """
        self._pass_on([_as_policies_see(each) for each in changes], read_at)

    def _note_unknown(self, changes: list[Change]) -> None:
        """Keep count of what was never read well, and tell when that is nothing any more: after it was delivered."""
        with self._lock:
            for change in changes:
                match change:
                    case Refused(problem, partial=False) if self._listing and problem.ref.kind in HIDES:
                        self._unknown.add(problem.ref)
                    case Upsert(fact):
                        self._unknown.discard(fact.ref)
                    case Delete(ref):
                        self._unknown.discard(ref)
            complete = self._incomplete and not self._unknown
            self._incomplete &= not complete
        if complete:
            self._deliver([Synced()])

    def _listed(self) -> None:
        with self._lock:
            self._listing = False
            complete = not self._unknown
            self._incomplete = not complete
        changes: list[Change] = []
        if not self._node_known:
            text = "no such node in the cluster; what does --node-name say, and what `kubectl get nodes`?"
            changes.append(Refused(Problem(self._node, "metadata.name", text)))
        self._deliver([*changes, Synced(complete=complete)])
        self._peers.begin()
