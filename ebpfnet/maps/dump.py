"""Tables as sorted text: what ``ebpfnet map dump`` prints and what the golden tests compare.

``summary`` is a function of the cluster alone: no ids, no generations, no slot numbers, so that however the tables came
to hold this, it reads the same. ``rows`` shows everything, one entry a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.maps.table import Table

PROTOCOLS = {number.value: number.name for number in abi.Protocol} | {abi.Protocol.ICMPV6.value: "ICMP"}


def host_port(address: bytes, port: int) -> str:
    """Return ADDRESS:PORT, IPv6 in brackets."""
    ip = abi.unpack_address(address)
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def _names(tables: Mapping[str, Table]) -> dict[int, str]:
    return {int.from_bytes(key, "little"): abi.unpack_name(value) for key, value in tables["names"].items()}


def protocol_name(number: int) -> str:
    """Return TCP, UDP, ...; a number that nobody named stays one."""
    return PROTOCOLS.get(number, str(number))


def summary(tables: Mapping[str, Table]) -> list[str]:
    """Return what the cluster decides, sorted: a line for each frontend, backend and pod address.

    A slot that a frontend leads to and that is missing shows as ``(missing)``; one that no frontend leads to, and a
    name of nothing, as ``STRAY``: none of the three is ever right.
    """
    names = _names(tables)
    slots = dict(tables["slots"].items())
    lines = []
    used = set()
    for key, value in tables["services"].items():
        frontend, service = abi.Frontend.unpack(key), abi.Service.unpack(value)
        used.add(service.id)
        label = names.get(service.id, "(no name)")
        head = f"{host_port(frontend.address, frontend.port)}/{protocol_name(frontend.protocol)}"
        lines.append(f"SERVICE {label} {head} backends={service.count}")
        for index in range(service.count):
            raw = slots.pop(abi.Slot(service.id, service.generation, index).pack(), None)
            backend = abi.Backend.unpack(raw) if raw else None
            where = host_port(backend.address, backend.port) if backend else "(missing)"
            lines.append(f"BACKEND {label} {head} {where}")
    for key, value in tables["pods"].items():
        pod = abi.Pod.unpack(value)
        used.add(pod.id)
        wire = f"ifindex={pod.wire.ifindex} mac={pod.wire.mac.hex(':')}"
        lines.append(f"POD {names.get(pod.id, '(no name)')} {abi.unpack_address(key)} {wire}")
    lines += [f"STRAY slot of {names.get(abi.Slot.unpack(key).service, 'nothing')}" for key in slots]
    lines += [f"STRAY name {text}" for identity, text in names.items() if identity not in used]
    return sorted(lines)


def rows(tables: Mapping[str, Table], name: str) -> Iterator[str]:
    """Yield every entry of one table with its fields named; raises ``KeyError`` for a table that is not there.

    Samples of drops that have not been yet are no entries.
    """
    names = _names(tables)
    for key, value in tables[name].items():
        if name == "drop_samples" and not abi.DropSample.unpack(value).sequence:
            continue
        yield _row(name, key, value, names)


def _row(name: str, key: bytes, value: bytes, names: Mapping[int, str]) -> str:
    match name:
        case "services":
            frontend, service = abi.Frontend.unpack(key), abi.Service.unpack(value)
            head = f"{host_port(frontend.address, frontend.port)}/{protocol_name(frontend.protocol)}"
            label = names.get(service.id, "?")
            return f"{head} -> {label} id={service.id:016x} generation={service.generation} count={service.count}"
        case "slots":
            slot, backend = abi.Slot.unpack(key), abi.Backend.unpack(value)
            label = names.get(slot.service, f"{slot.service:016x}")
            where = host_port(backend.address, backend.port)
            return f"{label} generation={slot.generation} index={slot.index} -> {where}"
        case "pods":
            pod = abi.Pod.unpack(value)
            wire = f"ifindex={pod.wire.ifindex} mac={pod.wire.mac.hex(':')}"
            return f"{abi.unpack_address(key)} -> {names.get(pod.id, '?')} {wire}"
        case "flows":
            return _flow(abi.Tuple.unpack(key), abi.Flow.unpack(value), names)
        case "fragments":
            fragment, ports = abi.Fragment.unpack(key), abi.Ports.unpack(value)
            ends = f"{abi.unpack_address(fragment.source)} -> {abi.unpack_address(fragment.destination)}"
            protocol = protocol_name(fragment.protocol)
            return f"{ends} id={fragment.id} {protocol} ports={ports.source},{ports.destination}"
        case "names":
            return f"{int.from_bytes(key, 'little'):016x} {abi.unpack_name(value)}"
        case "forwards" | "drops":
            return _counter(name, int.from_bytes(key, "little"), value)
        case "drop_samples":
            return _sample(abi.DropSample.unpack(value))
        case _:
            return f"{int.from_bytes(key, 'little')} {int.from_bytes(value, 'little')}"


def _ends(key: abi.Tuple) -> str:
    return f"{host_port(key.source, key.source_port)} -> {host_port(key.destination, key.destination_port)}"


def _flow(key: abi.Tuple, flow: abi.Flow, names: Mapping[int, str]) -> str:
    ends, to = _ends(key), _ends(flow.to)
    flags = "|".join(flag.name or "" for flag in abi.FlowFlag if flag in flow.flags) or "-"
    wires = f"from={flow.from_.ifindex} deliver={flow.deliver.ifindex}"
    service = f" service={names.get(flow.service, hex(flow.service))}" if flow.service else ""
    return f"{protocol_name(key.protocol)} {ends} as {to} {flow.state.name} {flags} {wires}{service}"


def _sample(sample: abi.DropSample) -> str:
    key = sample.tuple
    packet = f"{protocol_name(key.protocol)} {_ends(key)}" if any(key.source) else "(not read)"
    where = f"{sample.hook.name.lower()} {sample.reason.name} ifindex={sample.ifindex} length={sample.length}"
    return f"{sample.sequence} {where} {packet} seen_ns={sample.seen_ns}"


def _counter(name: str, index: int, value: bytes) -> str:
    size = abi.Counter.size()
    parts = [abi.Counter.unpack(value[at : at + size]) for at in range(0, len(value), size)]
    hook, what = divmod(index, abi.DROP_MAX if name == "drops" else len(abi.Outcome))
    label = abi.DropReason(what).name if name == "drops" else abi.Outcome(what).name
    packets, octets = sum(part.packets for part in parts), sum(part.bytes for part in parts)
    return f"{abi.Hook(hook).name.lower()} {label} packets={packets} bytes={octets}"
