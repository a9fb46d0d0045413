"""Tables as sorted text: what ``ebpfnet map dump`` prints and what the golden tests compare.

``summary`` is a function of the cluster alone: no ids, no generations, no slot numbers, so that however the tables came
to hold this, it reads the same. ``rows`` shows everything, one entry a line.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.maps.hits import pieces
from ebpfnet.maps.percpu import totals
from ebpfnet.maps.table import Table

PROTOCOLS = {number.value: number.name for number in abi.Protocol} | {abi.Protocol.ICMPV6.value: "ICMP"}

REASONS = frozenset(abi.DropReason)


def host_port(address: bytes, port: int) -> str:
    """Return ADDRESS:PORT, IPv6 in brackets."""
    ip = abi.unpack_address(address)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def _names(tables: Mapping[str, Table]) -> dict[int, str]:
    return {int.from_bytes(key, "little"): abi.unpack_name(value) for key, value in tables["names"].items()}


def protocol_name(number: int) -> str:
    """Return TCP, UDP, ...; a number that nobody named stays one."""
    return PROTOCOLS.get(number, str(number))


def frontend_name(key: bytes) -> str:
    """Return ADDRESS:PORT/PROTOCOL of a key of ``services``, or PORT/PROTOCOL of a NodePort."""
    frontend = abi.Frontend.unpack(key)
    ends = f"{frontend.port}/{protocol_name(frontend.protocol)}"
    any_address = frontend.address in {bytes(16), abi.V4_PREFIX + bytes(4)}
    return ends if any_address else f"{host_port(frontend.address, 0)[:-2]}:{ends}"


def block_name(prefix_length: int, address: bytes) -> str:
    """Return ADDRESS/BITS of a block whose ``prefix_length`` is that of the mapped address."""
    ip = abi.unpack_address(address)
    return f"{ip}/{prefix_length - 96 if ip.version == 4 else prefix_length}"


def flag_names(flags: enum.IntFlag) -> str:
    """Return the names of flags, ``|`` between them."""
    return "|".join(flag.name or "" for flag in type(flags) if flag in flags)


class _Tables:
    """The tables as they were read, and what of them was shown."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.names = _names(tables)
        self.used: set[int] = set()
        self.slots = dict(tables["slots"].items())
        self.sets = {int.from_bytes(key, "little"): abi.Set.unpack(value) for key, value in tables["sets"].items()}
        self.members = {
            (each.set, each.backend) for each in (abi.Member.unpack(key) for key, _ in tables["members"].items())
        }
        labels = [text.rpartition(":")[0] for text in self.names.values()]
        self.services = {abi.identify(text): text for text in labels if text}
        self._backends: dict[int, list[abi.Backend | None]] = {}

    def label(self, identity: int) -> str:
        return self.names.get(identity, "(no name)")

    def backends(self, identity: int) -> list[abi.Backend | None]:
        """Return a set's backends, each once; None for one that is missing."""
        if identity not in self._backends:
            self.used.add(identity)
            found = self.sets.get(identity, abi.Set(0, 1))  # a set that is missing lacks all of them
            slots = (abi.Slot(identity, found.generation, index).pack() for index in range(found.count))
            raws = [self.slots.pop(slot, None) for slot in slots]
            self._backends[identity] = [abi.Backend.unpack(raw) if raw else None for raw in dict.fromkeys(raws)]
        return self._backends[identity]

    def describe(self, identity: int) -> str:
        """Return what is said of a set behind a frontend."""
        text = f"backends={len(self.backends(identity))}"
        found = self.sets.get(identity)
        if found is None:
            return f"{text} (missing)"
        slots = found.count
        flags = abi.SetFlag(found.flags)
        text += f" slots={slots}" if slots != len(self.backends(identity)) else ""
        return text + (f" {flag_names(flags)}" if flags else "")


def _service_lines(tables: _Tables, key: bytes, value: bytes) -> Iterator[str]:
    service = abi.Service.unpack(value)
    if not key[18]:
        yield f"MARK {abi.unpack_address(key[:16])} {flag_names(abi.Mark(service.marks))}"
        return
    sets = dict.fromkeys((service.inside, service.outside))
    frontend = abi.Frontend.unpack(key)
    head = f"{host_port(frontend.address, frontend.port)}/{protocol_name(frontend.protocol)}"
    line = f"SERVICE {tables.label(service.inside)} {head} {tables.describe(service.inside)}"
    if len(sets) > 1:
        line += f" outside={tables.label(service.outside)} {tables.describe(service.outside)}"
    line += f" {flag_names(abi.Mark(service.marks))}" if service.marks else ""
    line += f" ranges={tables.services.get(service.ranges, hex(service.ranges))}" if service.ranges else ""
    yield line + (f" affinity={service.affinity_s}s" if service.affinity_s else "")
    for identity in sets:
        for backend in tables.backends(identity):
            where = host_port(backend.address, backend.port) if backend else "(missing)"
            yield f"BACKEND {tables.label(identity)} {head} {where}"


def _member_lines(tables: _Tables) -> Iterator[str]:
    """Yield a line for each set all of whose backends are members, and for each member of no set."""
    for identity in tables.used:
        backends = {each for each in tables.backends(identity) if each is not None}
        members = {backend for owner, backend in tables.members if owner == identity}
        if members:
            yield f"MEMBERS {tables.label(identity)} {len(members & backends)} of {len(backends)}"
    for identity, backend in tables.members:
        if identity not in tables.used or backend not in tables.backends(identity):
            yield f"STRAY member of {tables.label(identity)} {host_port(backend.address, backend.port)}"


def summary(tables: Mapping[str, Table]) -> list[str]:
    """Return what the cluster decides, sorted: a line for each frontend, backend, mark, range, block and pod address.

    A slot that a frontend leads to and that is missing shows as ``(missing)``; one that no frontend leads to, and a
    set, a member and a name of nothing, as ``STRAY``: none of them is ever right.
    """
    read = _Tables(tables)
    lines = [line for item in tables["services"].items() for line in _service_lines(read, *item)]
    lines += _member_lines(read)
    for each in (abi.Range.unpack(key) for key, *_ in tables["ranges"].items()):
        block = block_name(each.prefix_length - 64, each.address)
        lines.append(f"RANGE {read.services.get(each.service, hex(each.service))} {block}")
    for key, value in tables["blocks"].items():
        each_block = abi.Block.unpack(key)
        kind = abi.BlockKind(int.from_bytes(value, "little"))
        lines.append(f"BLOCK {block_name(each_block.prefix_length, each_block.address)} {kind.name}")
    for *_, value in tables["node"].items():
        lines += _node_lines(abi.Node.unpack(value))
    for key, value in tables["pods"].items():
        pod = abi.Pod.unpack(value)
        read.used.add(pod.id)
        wire = f"ifindex={pod.wire.ifindex} mac={pod.wire.mac.hex(':')}"
        lines.append(f"POD {read.label(pod.id)} {abi.unpack_address(key)} {wire}")
    for name in ("rules", "rule_ports"):
        rules = {abi.Rule.unpack(value).id for _, value, *_ in tables[name].items()}
        read.used.update(each for rule in rules for each, _ in pieces(rule, lambda one: read.names.get(one, "")))
    lines += [f"STRAY set {read.label(identity)}" for identity in read.sets if identity not in read.used]
    lines += [f"STRAY slot of {read.names.get(abi.Slot.unpack(key).set, 'nothing')}" for key in read.slots]
    lines += [f"STRAY name {text}" for identity, text in read.names.items() if identity not in read.used]
    return sorted(lines)


def _node_lines(node: abi.Node) -> Iterator[str]:
    for address in (node.ipv4, node.ipv6):
        if any(address):
            yield f"NODE {abi.unpack_address(address)} ports={node.first_port}-{node.last_port}"


def rows(tables: Mapping[str, Table], name: str) -> Iterator[str]:
    """Yield every entry of one table with its fields named; raises ``KeyError`` for a table that is not there.

    Samples of drops that have not been yet are no entries, nor are counters that no reason has, nor generations that
    nothing has changed yet, nor places that no route was kept in.
    """
    names = _names(tables)
    for key, value in tables[name].items():
        if name == "drop_samples" and not abi.DropSample.unpack(value).sequence:
            continue
        if name == "generations" and not any(value):
            continue
        if name == "routes":
            yield from _routes(value)
            continue
        if name == "drops" and int.from_bytes(key, "little") % abi.DROP_MAX not in REASONS:
            continue
        yield _row(name, key, value, names)


def _row(name: str, key: bytes, value: bytes, names: Mapping[int, str]) -> str:
    match name:
        case "services":
            return _frontend(key, abi.Service.unpack(value), names)
        case "sets" | "slots" | "members" | "affinity" | "usage" | "departed":
            return _of_set(name, key, value, names)
        case "ranges":
            each = abi.Range.unpack(key)
            return f"service={each.service:016x} {block_name(each.prefix_length - 64, each.address)}"
        case "blocks":
            block, kind = abi.Block.unpack(key), abi.BlockKind(int.from_bytes(value, "little"))
            return f"{block_name(block.prefix_length, block.address)} {kind.name}"
        case "node":
            node = abi.Node.unpack(value)
            addresses = " ".join(str(abi.unpack_address(each)) for each in (node.ipv4, node.ipv6) if any(each))
            return f"{addresses or '-'} ports={node.first_port}-{node.last_port}"
        case "pods":
            pod = abi.Pod.unpack(value)
            wire = f"ifindex={pod.wire.ifindex} mac={pod.wire.mac.hex(':')}"
            group = f" group={_id_name(pod.group, names)}" if pod.group else ""
            return f"{abi.unpack_address(key)} -> {names.get(pod.id, '?')} {wire}{group}"
        case "flows":
            return _flow(abi.Tuple.unpack(key), abi.Flow.unpack(value), names)
        case "fragments":
            fragment, ports = abi.Fragment.unpack(key), abi.Ports.unpack(value)
            ends = f"{abi.unpack_address(fragment.source)} -> {abi.unpack_address(fragment.destination)}"
            protocol = protocol_name(fragment.protocol)
            return f"{ends} id={fragment.id} {protocol} ports={ports.source},{ports.destination}"
        case "namespaces":
            namespace, address = abi.Netns.unpack(key), abi.unpack_address(value)
            return f"{namespace.cookie} -> {'this node' if address.is_unspecified else address}"
        case "sockets":
            return _socket(int.from_bytes(key, "little"), abi.Socket.unpack(value), names)
        case "names":
            return f"{int.from_bytes(key, 'little'):016x} {abi.unpack_name(value)}"
        case "forwards" | "drops":
            return _counter(name, int.from_bytes(key, "little"), value)
        case "drop_samples":
            return _sample(abi.DropSample.unpack(value), names)
        case "peers" | "peer_blocks" | "rules" | "rule_ports" | "rule_hits":
            return _of_policy(name, key, value, names)
        case "generations":
            return f"ifindex={int.from_bytes(key, 'little')} generation={int.from_bytes(value, 'little')}"
        case _:
            return f"{int.from_bytes(key, 'little')} {int.from_bytes(value, 'little')}"


def _id_name(identity: int, names: Mapping[int, str]) -> str:
    """Return what an id is called, in quotes; the number of one without a name."""
    return f'"{names[identity]}"' if identity in names else f"{identity:016x}"


def _of_policy(name: str, key: bytes, value: bytes, names: Mapping[int, str]) -> str:
    match name:
        case "peers":
            return f"{abi.unpack_address(key)} class={int.from_bytes(value, 'little')}"
        case "peer_blocks":
            block = abi.Block.unpack(key)
            return f"{block_name(block.prefix_length, block.address)} class={int.from_bytes(value, 'little')}"
        case "rules":
            asked = abi.RuleKey.unpack(key)
            peers = f"class={asked.peers}" if asked.peers else "everybody"
            group = _id_name(asked.group, names)
            return f"{group} {abi.Direction(asked.direction).name} {peers} {_rule(abi.Rule.unpack(value), names)}"
        case "rule_ports":
            return f"{_port_range(abi.PortRange.unpack(key))} {_rule(abi.Rule.unpack(value), names)}"
        case _:
            return f"{_id_name(int.from_bytes(key, 'little'), names)} {_hits(value)}"


def _rule(rule: abi.Rule, names: Mapping[int, str]) -> str:
    flags = f" {flag_names(abi.RuleFlag(rule.flags))}" if rule.flags else ""
    lengths = ",".join(str(length) for length in range(17) if rule.lengths >> length & 1)
    ports = f" ports={rule.ports:016x} lengths={lengths}" if rule.ports else ""
    return f"{rule.verdict.name}{flags} by={_id_name(rule.id, names) if rule.id else '-'}{ports}"


def _port_range(key: abi.PortRange) -> str:
    last = key.port + (1 << (16 - key.length)) - 1
    ports = f"{key.port}-{last}" if last > key.port else str(key.port)
    return f"ports={key.ports:016x} {protocol_name(key.protocol)} {ports}"


def _hits(value: bytes) -> str:
    allowed, denied, audited = totals(value, abi.Hits)
    return f"allowed={allowed} denied={denied} audited={audited}"


def _socket(cookie: int, each: abi.Socket, names: Mapping[int, str]) -> str:
    asked = f"{cookie} namespace={each.namespace} {host_port(each.asked.address, each.asked.port)}"
    if not each.given.port:
        return f"{asked} left to its packets"
    return f"{asked} -> {host_port(each.given.address, each.given.port)} service={names.get(each.set, hex(each.set))}"


def _frontend(key: bytes, service: abi.Service, names: Mapping[int, str]) -> str:
    if not key[18]:
        return f"{abi.unpack_address(key[:16])} is {flag_names(abi.Mark(service.marks))}"
    frontend = abi.Frontend.unpack(key)
    head = f"{host_port(frontend.address, frontend.port)}/{protocol_name(frontend.protocol)}"
    sets = f"inside={service.inside:016x} outside={service.outside:016x}"
    ranges = f" ranges={service.ranges:016x}" if service.ranges else ""
    return f"{head} -> {names.get(service.inside, '?')} {sets}{ranges} affinity_s={service.affinity_s}"


def _of_set(name: str, key: bytes, value: bytes, names: Mapping[int, str]) -> str:
    identity = int.from_bytes(key[:8], "little")
    label = names.get(identity, f"{identity:016x}")
    match name:
        case "sets":
            each = abi.Set.unpack(value)
            flags = flag_names(abi.SetFlag(each.flags)) or "-"
            head = f"{names.get(identity, '?')} id={identity:016x}"
            return f"{head} generation={each.generation} count={each.count} flags={flags}"
        case "slots":
            slot, backend = abi.Slot.unpack(key), abi.Backend.unpack(value)
            where = host_port(backend.address, backend.port)
            return f"{label} generation={slot.generation} index={slot.index} -> {where}"
        case "affinity":
            client, stays = abi.Client.unpack(key), abi.Affinity.unpack(value)
            where = host_port(stays.backend.address, stays.backend.port)
            return f"{label} {abi.unpack_address(client.address)} -> {where} seen_ns={stays.seen_ns}"
        case _:
            backend = abi.Member.unpack(key).backend
            where = f"{label} {host_port(backend.address, backend.port)}"
            match name:
                case "members":
                    return where
                case "departed":
                    return f"{where} {abi.Departure(int.from_bytes(value, 'little')).name}"
            return f"{where} {_usage(value)}"


def _usage(value: bytes) -> str:
    connections, packets, octets = totals(value, abi.Usage)
    return f"connections={connections} packets={packets} bytes={octets}"


def _ends(key: abi.Tuple) -> str:
    return f"{host_port(key.source, key.source_port)} -> {host_port(key.destination, key.destination_port)}"


def _flow(key: abi.Tuple, flow: abi.Flow, names: Mapping[int, str]) -> str:
    ends, to = _ends(key), _ends(flow.to)
    flags = "|".join(flag.name or "" for flag in abi.FlowFlag if flag in flow.flags) or "-"
    wires = f"from={flow.from_.ifindex} deliver={flow.deliver.ifindex}"
    service = f" service={names.get(flow.service, hex(flow.service))}" if flow.service else ""
    rules = "".join(
        f" {word}={_id_name(rule, names)}"
        for word, rule in (("egress", flow.egress_rule), ("ingress", flow.ingress_rule))
        if rule
    )
    generation = f" generation={flow.generation}" if flow.generation else ""
    return f"{protocol_name(key.protocol)} {ends} as {to} {flow.state.name} {flags} {wires}{service}{generation}{rules}"


def _sample(sample: abi.DropSample, names: Mapping[int, str]) -> str:
    key = sample.tuple
    packet = f"{protocol_name(key.protocol)} {_ends(key)}" if any(key.source) else "(not read)"
    where = f"{sample.hook.name.lower()} {sample.reason.name} ifindex={sample.ifindex} length={sample.length}"
    rule = f" rule={_id_name(sample.rule, names)}" if sample.rule else ""
    return f"{sample.sequence} {where} {packet} seen_ns={sample.seen_ns}{rule}"


def _routes(value: bytes) -> Iterator[str]:
    size = abi.Route.size()
    for cpu in range(len(value) // size):
        kept = abi.Route.unpack(value[cpu * size : (cpu + 1) * size])
        if kept.asked_ns:
            ends = f"{abi.unpack_address(kept.source)} -> {abi.unpack_address(kept.destination)}"
            way = f"ifindex={kept.ifindex} mac={kept.hop_mac.hex(':')} mtu={kept.mtu}"
            yield f"cpu={cpu} {ends} tos={kept.tos} from={kept.from_} {way} asked_ns={kept.asked_ns}"


def _counter(name: str, index: int, value: bytes) -> str:
    hook, what = divmod(index, abi.DROP_MAX if name == "drops" else len(abi.Outcome))
    kind = abi.DropReason if name == "drops" else abi.Outcome
    label = kind(what).name if what in set(kind) else str(what)  # there is room for reasons to come
    packets, octets = totals(value, abi.Counter)
    return f"{abi.Hook(hook).name.lower()} {label} packets={packets} bytes={octets}"
