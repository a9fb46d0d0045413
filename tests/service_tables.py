"""A node's tables, kept by our own code, and what they say about a connection.

They are read as the comments in ``bpf/abi.h`` tell, one lookup after the other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from ebpfnet import abi
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Change, Delete, IPAddress, IPNetwork, Kind, Ref, Refused, Synced, Upsert
from ebpfnet.model.host import Host
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.watch.decode import decode
from tests.cluster import memory_tables, wire
from tests.service_clusters import Cluster, Step, identity
from tests.service_oracle import Action, Answer, Client, Flags, Manifest, Oracle, Who

PROTOCOLS = {"TCP": abi.Protocol.TCP, "UDP": abi.Protocol.UDP, "SCTP": abi.Protocol.SCTP}


def raw(address: str) -> bytes:
    """Return an address as the tables hold it."""
    return abi.pack_address(ipaddress.ip_address(address))


def shown(address: bytes) -> str:
    """Return an address of the tables as text."""
    return str(abi.unpack_address(address))


def host_of(oracle: Oracle, flags: Flags) -> Host:
    """Return what the flags make of the node, as the agent would say it."""

    def parsed(texts: Iterable[str]) -> tuple[IPAddress, ...]:
        return tuple(ipaddress.ip_address(text) for text in sorted(texts))

    def blocks(texts: tuple[str, ...]) -> tuple[IPNetwork, ...]:
        return tuple(map(ipaddress.ip_network, texts))

    return Host(
        addresses=parsed(oracle.own),
        nodeport_addresses=parsed(each for each in oracle.own if oracle.serves_nodeports(each)),
        sources=parsed(oracle.primary),
        pod_cidrs=blocks(flags.cluster_cidrs),
        service_cidrs=blocks(flags.service_cidrs),
        external_ip_cidrs=blocks(flags.external_ip_cidrs),
    )


def changes_of(step: Step) -> list[Change]:
    """Return what a source would say: what is none of ours, or no more, is gone."""
    found, (kind, namespace, name) = decode(step.item), identity(step.item)
    if step.gone or not (found.fact or found.problems):
        return [Delete(Ref(Kind(kind), "" if kind == "Node" else namespace, name))]
    told: list[Change] = [Refused(problem, partial=bool(found.fact)) for problem in found.problems]
    return [*told, Upsert(found.fact)] if found.fact else told


class Follower:
    """One node's tables, kept by a reconciler."""

    def __init__(self, cluster: Cluster, manifests: list[Manifest]) -> None:
        self.cluster = cluster
        self.tables: dict[str, Table] = memory_tables()
        self.reconciler = Reconciler(self.tables, cluster.here)
        self.reconciler.set_host(host_of(cluster.oracle(), cluster.flags))
        here = [pod for pod in cluster.pods if pod["spec"]["nodeName"] == cluster.here]
        names = [f"default/{pod['metadata']['name']}" for pod in here if not pod["spec"]["hostNetwork"]]
        self.reconciler.set_wires({name: wire(number) for number, name in enumerate(names, 1001)})
        self.reconciler.apply([*(change for item in manifests for change in changes_of(Step(item))), Synced()])

    def follow(self, steps: list[Step]) -> None:
        """Take changes in, as few or as many at a time as they come."""
        self.reconciler.set_host(host_of(self.cluster.oracle(), self.cluster.flags))
        for step in steps:
            self.reconciler.apply(changes_of(step))


class Tables:
    """One node's tables; ``answer`` says what the datapath must make of a client's first packet."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = {name: dict(table.items()) for name, table in tables.items()}

    def answer(self, client: Client, destination: str, port: int, protocol: str) -> Answer:
        """Return the same kind of answer as the oracle."""
        service = self._service(raw(destination), port, PROTOCOLS[protocol])
        marks = found.marks if (found := self._service(raw(destination), 0, 0)) else 0
        if service is None and marks & abi.Mark.CLUSTER_IP:
            return Answer(Action.REJECT, "UNDEFINED_PORT")
        beyond = True  # other nodes know the address
        if service is None and marks & abi.Mark.NODEPORTS:
            any_address = abi.V4_PREFIX + bytes(4) if ":" not in destination else bytes(16)
            service = self._service(any_address, port, PROTOCOLS[protocol])
            beyond = bool(marks & abi.Mark.NODE)
        if service is None:
            unallocated = self._block(raw(destination)) == abi.BlockKind.SERVICES and not marks
            return Answer(Action.DROP, "UNALLOCATED_ADDRESS") if unallocated else Answer(Action.PASS)
        if service.ranges and not self._welcome(service.ranges, raw(client.address)):
            return Answer(Action.DROP, "SOURCE_RANGE")
        near = client.who in {Who.POD, Who.HOST} or self._block(raw(client.address)) == abi.BlockKind.PODS
        client_is = found.marks if (found := self._service(raw(client.address), 0, 0)) else 0
        direct = bool(service.marks & abi.Mark.DIRECT and beyond and not near and not client_is & abi.Mark.NODE)
        return self._choice(service.inside if near else service.outside, client, destination, direct=direct)

    def _service(self, address: bytes, port: int, protocol: int) -> abi.Service | None:
        found = self._tables["services"].get(abi.Frontend(address, port, protocol).pack())
        return None if found is None else abi.Service.unpack(found)

    def _choice(self, identity: int, client: Client, destination: str, *, direct: bool) -> Answer:
        entry = abi.Set.unpack(self._tables["sets"][identity.to_bytes(8, "little")])
        if not entry.count:
            elsewhere = entry.flags & abi.SetFlag.ELSEWHERE
            return Answer(Action.DROP, "NO_LOCAL_ENDPOINTS") if elsewhere else Answer(Action.REJECT, "NO_ENDPOINTS")
        slots = [abi.Slot(identity, entry.generation, index).pack() for index in range(entry.count)]
        backends = [abi.Backend.unpack(self._tables["slots"][slot]) for slot in slots]
        ends = {(shown(each.address), each.port): self._sources(client, destination, each.address) for each in backends}
        if direct:
            mine = frozenset({shown(raw(client.address))})
            ends = {end: mine if sources else sources for end, sources in ends.items()}
        return Answer(Action.FORWARD, "", ends)

    def _sources(self, client: Client, destination: str, backend: bytes) -> frozenset[str]:
        if client.who in {Who.POD, Who.HOST}:
            hairpin = backend == raw(client.address)
            return frozenset({shown(raw(destination if hairpin else client.address))})
        pod = self._tables["pods"].get(backend)
        own = found.marks & abi.Mark.OWN if (found := self._service(backend, 0, 0)) else 0
        if own or (pod and abi.Pod.unpack(pod).wire.ifindex):
            return frozenset({shown(raw(client.address))})
        node = abi.Node.unpack(self._tables["node"][bytes(4)])
        source = node.ipv6 if ":" in destination else node.ipv4
        return frozenset({shown(source)} if any(source) else ())

    # Longest prefix, by looking at every entry

    def _welcome(self, identity: int, client: bytes) -> bool:
        given = abi.Range(64 + 128, identity, client).pack()
        return any(_matches(entry, given) for entry in self._tables["ranges"])

    def _block(self, address: bytes) -> int:
        given = abi.Block(128, address).pack()
        matching = [entry for entry in self._tables["blocks"] if _matches(entry, given)]
        longest = max(matching, key=lambda entry: int.from_bytes(entry[:4], "little"), default=None)
        return 0 if longest is None else int.from_bytes(self._tables["blocks"][longest], "little")


def _matches(entry: bytes, given: bytes) -> bool:
    """Compare as many bits as the entry's prefix says; the bytes after the length, as the kernel's trie does."""
    shift = 8 * len(given[4:]) - int.from_bytes(entry[:4], "little")
    return int.from_bytes(entry[4:], "big") >> shift == int.from_bytes(given[4:], "big") >> shift


def agrees(expected: Answer, got: Answer) -> bool:
    """Say whether an answer is an acceptable one: the same backends, each with a source that it may see."""
    if expected[:2] != got[:2] or expected.backends.keys() != got.backends.keys():
        return False
    return all(got.backends[end] <= sources and bool(got.backends[end]) == bool(sources)
               for end, sources in expected.backends.items())  # fmt: skip
