"""Who is meant by ``--from`` and ``--to`` of ``ebpfnet policy explain``: addresses, pods, backends of services."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import click

from ebpfnet import abi
from ebpfnet.abi import Mark, Protocol
from ebpfnet.cli.instances import Instance
from ebpfnet.cli.lookup import NoSuchName, anywhere, full_name, without_port
from ebpfnet.cli.rules import Rules
from ebpfnet.cli.sets import Frontend, Sets
from ebpfnet.exits import BadInput, NotRunning
from ebpfnet.maps.dump import host_port, protocol_name

_PODS, _SERVICES = ("pod", "pods", "po"), ("svc", "service", "services")  # as kubectl has them


class End(NamedTuple):
    """One end of a connection: a packed address, and the pod's name where it is one's."""

    address: bytes
    pod: str

    def __str__(self) -> str:
        plain = str(abi.unpack_address(self.address))
        return f"{self.pod} ({plain})" if self.pod else plain

    @property
    def version(self) -> int:
        """4 or 6."""
        return abi.unpack_address(self.address).version


class Asked(NamedTuple):
    """A connection as policies see it: ``target`` is who is asked for in the end, ``service`` through which service.

    ``called``: at which address and port. ``note``: what must be said of it.
    """

    source: End
    target: End
    port: int
    protocol: int
    service: str = ""
    called: str = ""
    note: str = ""


class Place:
    """A node, and what its tables say."""

    def __init__(self, instance: Instance, rules: Rules) -> None:
        self.instance = instance
        self.rules = rules

    @cached_property
    def frontends(self) -> list[Frontend]:
        """Every address and port that is served."""
        return list(self.sets.frontends())

    @cached_property
    def sets(self) -> Sets:
        """The endpoint sets behind them."""
        return Sets(self.rules.tables)

    def has(self, address: bytes) -> bool:
        """Say whether an address is a pod's of this node."""
        return address in self.rules.lookup.pods


def resolve(places: list[Place], source: str, target: str, port: str | None, protocol: int) -> list[Asked]:
    """Return the connections that words mean, one for each family and backend; raises ``NoSuchName``, ``BadInput``."""
    sources = _find(places, *_kind(source), what="--from")
    kind, name = _kind(target)
    families = {each.version for each in sources}
    served = _calls(places, kind, name, port, protocol) or []
    calls = [each for each in served if abi.unpack_address(each[1].key.address).version in families]
    found = [each for sender in sources for each in _through(places, sender, calls, protocol)]
    if not found and calls and not _is_of_others(places, sources, calls):
        one = calls[0][1]
        raise BadInput(f"service {one.name} has no backend to ask about: connections are {one.inside.when_empty}")
    if not found and not (served and not calls):
        number, note = _number(port, name, protocol), _OTHERS if calls else ""
        pairs = itertools.product(sources, _find(places, kind, name, what="--to"))
        pairs_alike = ((one, other) for one, other in pairs if one.version == other.version)
        found = [Asked(one, other, number, protocol, note=note) for one, other in pairs_alike]
    if not found:
        raise BadInput(f"{source} and {target} have no address family in common")
    return [_with_family(each) for each in found]


_OTHERS = "a node port of another node: that node translates it, and may stand in for the client"


def _is_of_others(places: list[Place], sources: list[End], calls: list[tuple[Place, Frontend]]) -> bool:
    """Say whether what is called is served at other nodes than the sender's: its own sees the address as it is."""
    own = [place for place in places if any(place.has(each.address) for each in sources)]
    return bool(own) and all(place not in own for place, _ in calls)


def _with_family(asked: Asked) -> Asked:
    icmp = asked.protocol == Protocol.ICMP and asked.source.version == 6
    return asked._replace(protocol=Protocol.ICMPV6) if icmp else asked


def _number(port: str | None, name: str, protocol: int) -> int:
    if protocol == Protocol.ICMP:
        return 0
    if port is None:
        raise click.UsageError("--port is missing (only --protocol ICMP and a service with one port can do without)")
    if not port.isdigit():
        raise BadInput(
            f"--port {port}: {name} is no service here, and only a service's ports have names: say the number"
        )
    return int(port)


def _kind(text: str) -> tuple[str, str]:
    """Return what a word says that it is, and its name: ``svc/web``, ``svc/default/web``, ``pod/default/client``."""
    head, _, rest = text.partition("/")
    if rest and head in _SERVICES:
        return "service", full_name(rest)
    if rest and head in _PODS and "/" in rest:  # a namespace may be called so
        return "pod", rest
    return "", text


def _find(places: list[Place], kind: str, text: str, what: str) -> list[End]:
    """Return the ends that a word means, one for each address; raises ``NoSuchName``."""
    try:
        raw = abi.pack_address(ipaddress.ip_address(text))
    except ValueError:
        pass
    else:
        return [at_address(places, raw)]
    wanted = full_name(text)
    if kind == "service":
        raise NoSuchName(f"{what}: {wanted!r} is a service, and connections come from pods and addresses")
    found = {raw: None for place in places for raw, pod in place.rules.lookup.pods.items() if pod == wanted}
    if not found:
        found = {raw: None for place in places for raw in _elsewhere(place.instance, wanted)}
    if not found:
        word = "pod" if kind or what == "--from" else "pod or service"
        raise NoSuchName(f"{what}: no {word} {wanted!r} here, and no agent knows a pod of that name: give the address")
    return sorted(End(raw, wanted) for raw in found)


def at_address(places: list[Place], raw: bytes) -> End:
    """Return who has an address."""
    return End(raw, next((place.rules.lookup.pods[raw] for place in places if place.has(raw)), ""))


def _elsewhere(instance: Instance, wanted: str) -> list[bytes]:
    """Ask the agent for a pod of another node; it knows those that policies may mean."""
    from ebpfnet.model.peers import split
    from ebpfnet.status import ask

    try:
        answer = ask(instance.run, "facts", timeout_s=60)
    except NotRunning:
        return []
    known = (item for group in answer.get("peers", ()) for item in group["pods"].items())
    return [raw for name, packed in known if name.partition(" ")[2] == wanted for raw in split(bytes.fromhex(packed))]


# Services


def _calls(
    places: list[Place], kind: str, text: str, port: str | None, protocol: int
) -> list[tuple[Place, Frontend]] | None:
    """Return the frontends that are called, of each node; None: what is called is no service."""
    try:
        raw = abi.pack_address(ipaddress.ip_address(text))
    except ValueError:
        return _by_name(places, kind, full_name(text), port, protocol)
    number = int(port) if port and port.isdigit() else 0
    found = [
        (place, each)
        for place in places
        for each in place.frontends
        if (each.key.port, each.key.protocol) == (number, protocol)
        and (each.key.address == raw or (each.key.address == anywhere(raw) and _is(place, raw, Mark.NODEPORTS)))
    ]
    if not found and any(_is(place, raw, Mark.CLUSTER_IP) for place in places):
        raise BadInput(
            f"{text} is a service's cluster IP, and has no {protocol_name(protocol)} port {port or ''}".rstrip()
        )
    return found or None


def _is(place: Place, raw: bytes, mark: Mark) -> bool:
    return bool(place.rules.lookup.marks.get(raw, 0) & mark)


def _by_name(
    places: list[Place], kind: str, wanted: str, port: str | None, protocol: int
) -> list[tuple[Place, Frontend]] | None:
    """A name is a service's when that has the port, or when there is no pod of that name, as ``simulate`` has it."""
    if kind == "pod":
        return None
    mine = [(place, each) for place in places for each in place.frontends if without_port(each.name) == wanted]
    if not mine and kind:
        raise NoSuchName(f"no service {wanted!r} in the tables (a headless one is not there: ask about its pods)")
    served = [(place, each) for place, each in mine if each.key.protocol == protocol]
    found = [(place, each) for place, each in served if port is None or port in {str(each.key.port), _port_name(each)}]
    if port is None and len({_port_name(each) for _, each in served}) > 1:
        found = []
    if found:
        return found
    if not mine or (not kind and any(wanted in place.rules.lookup.pods.values() for place in places)):
        return None
    if protocol == Protocol.ICMP:
        raise BadInput(f"service {wanted} answers no ICMP: ask about a pod")
    known = sorted({f"{each.key.port}/{protocol_name(each.key.protocol)}" for _, each in mine})
    named = sorted({_port_name(each) for _, each in mine} - {""})
    names = f" ({', '.join(named)})" if named else ""
    said = f"--port {port}: " if port else "which --port? "
    raise BadInput(f"{said}service {wanted} has {', '.join(known)}{names}")


def _port_name(frontend: Frontend) -> str:
    return frontend.name.removeprefix(without_port(frontend.name)).removeprefix(":")


def _through(places: list[Place], sender: End, calls: list[tuple[Place, Frontend]], protocol: int) -> Iterator[Asked]:
    """Yield what a sender asks of each backend: of those that its node would choose, or that any would for outside."""
    is_pod = any(place.has(sender.address) for place in places)
    same = [each for each in calls if abi.unpack_address(each[1].key.address).version == sender.version]
    mine = [each for each in same if each[0].has(sender.address) or not is_pod]
    mine = [each for each in mine if each[1].internal == is_pod] or mine
    seen: dict[abi.Backend, None] = {}
    for place, each in mine:
        at = host_port(each.key.address, each.key.port)
        called = f"node port {each.key.port}" if each.kind == "NodePort" else at
        hidden = not is_pod and not each.outside.local and not each.entry.marks & Mark.DIRECT
        for backend in sorted(place.sets.backends(each.inside if is_pod else each.outside), key=abi.Backend.pack):
            if backend not in seen:
                seen[backend] = None
                target = at_address(places, backend.address)
                note = _STANDS_IN if hidden else ""
                yield Asked(sender, target, backend.port, protocol, each.name, called, note)


_STANDS_IN = "if it comes in at the backend's own node; any other node would stand in for the client"
