"""Keeps the tables equal to the cluster: takes model changes in and finds the units they touch (``writing`` the rest).

Nothing is written before the first full list has been delivered (``Synced``); then the tables are read back once and
only differences are written. While that list is not complete, what the tables hold and nobody knows stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.endpoints import Piece, compile_slice
from ebpfnet.compile.pods import Wires, owners
from ebpfnet.model.facts import (
    Accepted,
    Change,
    ClusterNetworkPolicy,
    Delete,
    EndpointSlice,
    Fact,
    IPAddress,
    Kind,
    NetworkPolicy,
    Peer,
    PeersKnown,
    Pod,
    Policy,
    Problem,
    Ref,
    Refused,
    Service,
    Synced,
    Upsert,
)
from ebpfnet.model.host import Host
from ebpfnet.reconcile.departures import Departures
from ebpfnet.reconcile.policy.subjects import narrowed, selection
from ebpfnet.reconcile.routes import Fate
from ebpfnet.reconcile.units import ALL, PODS
from ebpfnet.reconcile.writing import Writing


class Reconciler(Writing):
    """One node's tables. Not thread-safe: one owner."""

    # What comes in

    def apply(self, changes: Iterable[Change]) -> None:
        """Take changes in and, once synced, write what they touch."""
        for change in changes:
            match change:
                case Upsert(fact):
                    self._upsert(fact)
                case Delete(ref):
                    self._delete(ref)
                case Refused():
                    self._refusals.refuse(change)
                case Accepted(ref):
                    self._refusals.accept(ref)
                case PeersKnown(known):
                    self.cluster.peers_known = known
                    self._know()
                case Synced(complete):
                    self._on_synced(complete=complete)
        if self.synced:
            self.flush()

    def _on_synced(self, *, complete: bool) -> None:
        newly = complete and not self._complete
        self._complete |= complete
        if not self.synced:
            self.sync()
            self._knows = self._complete and self.cluster.peers_known
        elif newly:
            self._units.drift.add(ALL)
            self._units.drift.hurry(ALL)
        self._know()

    def _know(self) -> None:
        """Let go of what policies may have meant, once all that they may mean is known."""
        knows = self._complete and self.cluster.peers_known
        if knows and not self._knows and self.synced:
            self.policies.know_all()
        self._knows = knows

    def set_wires(self, named: Mapping[str, abi.Wire], behind: Mapping[IPAddress, abi.Wire] | None = None) -> None:
        """Say which pods (``NAMESPACE/NAME``) have a wire on this node, and which addresses are behind other wires."""
        wires = Wires(dict(named), dict(behind or {}))
        if wires != self._wires:
            self._wires = wires
            self._dirty[PODS] = None
            if self.synced:
                self.flush()

    def set_host(self, host: Host) -> None:
        """Say what this node itself is to services: before the first sync, and whenever that changes."""
        if host == self.host:
            return
        self.host = host
        self._services.frontends.place(host)
        self._place.want(host, self.cluster)
        outer = [each.ref for each in self.cluster.services.values() if _is_outer(each)]
        self._compile(outer)
        if self.synced:
            self.flush()

    def _upsert(self, fact: Fact) -> None:
        match fact:
            case EndpointSlice():
                self._feed(fact.ref, compile_slice(fact, self._services.groups.place))
            case Service():
                self._set_service(fact.ref, fact)
            case Pod():
                self._move(fact.ref, lambda: self.cluster.set_pod(fact))
            case Peer():
                self._move(fact.ref, lambda: self.cluster.note(fact))
            case NetworkPolicy() | ClusterNetworkPolicy():
                for step in self._policy_steps(fact):
                    self._note(fact.ref, lambda step=step: self.cluster.note(step))  # type: ignore[misc]
            case _:
                self._note(fact.ref, lambda: self.cluster.note(fact))

    def _policy_steps(self, policy: Policy) -> list[Policy]:
        """Return the versions that lead to a policy: pods leave it as it was, then it changes, then pods come to it."""
        before = self.cluster.policies.get(policy.ref) or self.cluster.cluster_policies.get(policy.ref)
        if before is None or not self.synced or selection(before) == selection(policy):
            return [policy]
        return [narrowed(before, policy), narrowed(policy, before), policy]

    def _delete(self, ref: Ref) -> None:
        self._refusals.accept(ref)
        match ref.kind:
            case Kind.ENDPOINT_SLICE:
                self._feed(ref, {})
            case Kind.SERVICE:
                self._set_service(ref, None)
            case Kind.POD:
                self._move(ref, lambda: self.cluster.drop_pod(ref))
            case Kind.PEER:
                self._move(ref, lambda: self.cluster.forget(ref))
            case _:
                self._note(ref, lambda: self.cluster.forget(ref))

    def _move(self, ref: Ref, work: Callable[[], bool | None]) -> None:
        """Take in or forget a pod, of this node (then ``work`` says so) or another one."""
        before = self.cluster.peers.find(ref)
        if work():
            self._dirty[PODS] = None
            self.policies.set_pod(ref)
        self.policies.move(before, self.cluster.peers.find(ref))

    def _tell_policies(self, ref: Ref) -> None:
        """Let policies look at what was taken in."""
        cluster, policies = self.cluster, self.policies
        match ref.kind:
            case Kind.NETWORK_POLICY:
                policies.set_policy(ref, cluster.policies.get(ref))
            case Kind.CLUSTER_NETWORK_POLICY:
                policies.set_policy(ref, cluster.cluster_policies.get(ref))
            case Kind.NAMESPACE:
                policies.set_namespace(ref)
            case Kind.NODE:
                policies.set_node(ref)

    def _note(self, ref: Ref, work: Callable[[], None]) -> None:
        """Take in or forget what matters to services only if it is a node, or says where cluster IPs come from."""
        if self.synced and ref.kind != Kind.SERVICE_CIDR:  # what was there before is a state of its own
            self.policies.prepare()
            self._write_policies()
        if ref.kind not in {Kind.NODE, Kind.SERVICE_CIDR}:
            work()
            self._tell_policies(ref)
            return
        node, blocks = self.cluster.nodes.get(ref), self.cluster.service_cidrs
        work()
        if ref.kind == Kind.NODE:
            self._tell_policies(ref)
        now = self.cluster.nodes.get(ref)
        if (node.pod_cidrs if node else ()) != (now.pod_cidrs if now else ()) or blocks != self.cluster.service_cidrs:
            self._place.want(self.host, self.cluster)
        if node != now:
            self._services.frontends.know_node(node.addresses if node else (), now.addresses if now else ())
        for group in self._services.groups.move(self.cluster.zone) if now != node else ():
            self._dirty.update(dict.fromkeys(self._services.fed_by(group)))

    def _set_service(self, ref: Ref, service: Service | None) -> None:
        versions = (self.cluster.services.get(ref), service)
        addresses = [address for each in versions if each for address in each.cluster_ips]
        if service:
            self.cluster.set_service(service)
        else:
            self.cluster.drop_service(ref)
        self._compile([ref])
        if self.synced and any(map(self._pods.holds, addresses)):  # it may be named for that, or no longer
            self._dirty[PODS] = None

    def _compile(self, refs: Collection[Ref]) -> None:
        self._dirty.update(dict.fromkeys(self._services.want(self.cluster, self.host, refs)))

    def _feed(self, ref: Ref, made: Mapping[int, Piece]) -> None:
        """Take a slice in, and write its difference at once: nothing else of its sets is looked at."""
        for fed in self._services.feed(ref, made):
            self._routes.turns += fed.loses
            if self.synced:
                self._services.departures.note(self._services.fed_by(fed.group), fed.before, fed.now)
            for set_id in self._services.fed_by(fed.group) if self.synced else ():
                if set_id in self._dirty:
                    continue
                if set_id in self._units.backlog:
                    self._units.backlog.hurry(set_id)
                else:
                    self._units.attempt(
                        set_id,
                        lambda fed=fed, set_id=set_id: self._services.follow(fed, set_id),  # type: ignore[misc]
                    )

    @property
    def next_retry(self) -> float | None:
        """When ``retry`` has something to do, on the clock; None: never."""
        times = (self._units.backlog.next, self._units.drift.next, self._tidy_at)
        return min((when for when in times if when is not None), default=None)

    @property
    def pending(self) -> int:
        """How many units are not in the kernel as they should be."""
        return len(self._dirty) + len(self._units.backlog)

    @property
    def late(self) -> bool:
        """Whether something could not be written, and not because it does not fit."""
        return bool(self._dirty) or not self._units.all_fit

    @property
    def used(self) -> dict[str, int]:
        """Entries in use, of the tables whose entries are counted."""
        services = self._services
        keyed = {"services": services.frontends, "ranges": services.ranges, **self.policies.tables}
        return (
            services.writer.used
            | {name: len(each.have) for name, each in keyed.items()}
            | {"pods": len(self.wires or ())}
        )

    @property
    def told(self) -> int:
        """Counts the changes of ``refusals``, so that who follows them need not compare."""
        return self._refusals.told + self._services.told

    @property
    def refusals(self) -> list[Refused]:
        """Everything that was refused or can't be served, by object and field."""
        left_out = [problem for group in self._services.problems.values() for problem in group] + self._pods.problems
        found = [*self._refusals.found, *(Refused(problem, partial=True) for problem in left_out)]
        found += map(Refused, [*self._services.frontends.full(), *self.policies.problems])
        found += [Refused(problem, partial=True) for problem in self._services.shut_out()]
        return sorted(found, key=lambda each: (each.problem.ref, each.problem.field))

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with each of the ``refusals``."""
        return [each.problem for each in self.refusals]

    @property
    def owners(self) -> dict[int, str]:
        """Interface number to pod (``NAMESPACE/NAME``), for the wires that belong to one."""
        return owners(self.cluster.pods.values(), self._wires)

    @property
    def wires(self) -> Mapping[bytes, bytes] | None:
        """Address to wire of every pod in the tables; None: not known now. Replaced, never changed."""
        return self._pods.wires

    # What flows are judged by

    @property
    def turns(self) -> int:
        """Counts what may leave flows astray: backends that go, frontends that come or go. Who follows it sweeps."""
        return self._routes.turns + self._services.writer.turns + self._services.frontends.turns

    @property
    def departures(self) -> Departures:
        """Backends that left, for who announces them: not done here, for what is told hangs on the order of changes."""
        return self._services.departures

    def is_frontend(self, frontend: bytes) -> bool:
        """Say whether packets to a packed ``Frontend`` are translated."""
        return self._routes.is_frontend(frontend)

    def fate(self, frontend: bytes, backend: bytes) -> Fate:
        """Say what a packed ``Backend`` is to a packed ``Frontend``; the best it may be while that is not known.

        While not every slice is known, one of those may list what no other does: then nothing is gone.
        """
        if not self.synced:
            return Fate.CHOSEN
        found = self._routes.fate(frontend, backend)
        return Fate.LISTED if found == Fate.GONE and not self._complete else found


def _is_outer(service: Service) -> bool:
    """Say whether what a service asks for depends on the node that it asks."""
    ports = any(port.node_port for port in service.ports)
    return bool(ports or service.load_balancer_ips or service.external_ips)
