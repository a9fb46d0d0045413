"""An EndpointSlice to its fact: the hot path, for a cluster has 250,000 endpoints and every rollout moves some."""

from __future__ import annotations

import datetime as dt
import re
import socket
from functools import lru_cache
from sys import intern

from ebpfnet import abi
from ebpfnet.model.endpoints import Condition
from ebpfnet.model.facts import EndpointSlice, Hint, Problem, Ref, SlicePort
from ebpfnet.watch import schema
from ebpfnet.watch.fields import (
    OURS,
    BadField,
    Decoded,
    annotation,
    parse_address,
    parse_port,
    parse_protocol,
    unknown_annotations,
    unusable,
)

SERVICE_NAME = "kubernetes.io/service-name"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
WEIGHT = f"{OURS}weight"
WEIGHT_MAX = 100
NO_HINT = Hint()
_NUMBER = re.compile("[1-9][0-9]{0,2}")


def convert_slice(ref: Ref, item: schema.EndpointSliceObject) -> Decoded:
    """Return a slice as a fact; raises ``BadField``. One of no service is nobody's."""
    if item.address_type == "FQDN":
        return Decoded(None, None)
    if item.address_type not in {"IPv4", "IPv6"}:
        raise BadField("addressType", f"{item.address_type!r} is not IPv4, IPv6 or FQDN")
    service = (item.metadata.labels or {}).get(SERVICE_NAME, "")
    if not service:
        return Decoded(None, None)  # a slice of nobody's: the API allows it, for other users
    ports: list[SlicePort] = []
    for index, port in enumerate(item.ports or ()):
        if port.port is None:  # "all ports", which no service can mean
            continue
        protocol = parse_protocol(port.protocol, f"ports[{index}].protocol")
        ports.append(_port(port.name or "", protocol, parse_port(port.port, f"ports[{index}].port")))
    ipv6, items, annotations = item.address_type == "IPv6", item.endpoints or [], item.metadata.annotations or {}
    run, bad = _endpoints(items, ipv6=ipv6)
    problems = [Problem(ref, f"endpoints[{index}].addresses[0]", reason) for index, reason in bad.items()]
    if bad:
        items = [each for index, each in enumerate(items) if index not in bad]
    weight = 1
    if annotations:
        weight = _weight(ref, annotations.get(WEIGHT), problems)
        problems += unknown_annotations(ref, annotations, WEIGHT)
    fact = EndpointSlice(ref, service, ipv6, tuple(ports), run, _nodes(items), _hints(items), weight)
    return Decoded(ref, fact, tuple(problems), _seconds(annotations.get(TRIGGER_TIME)))


@lru_cache(4096)
def _port(name: str, protocol: int, port: int) -> SlicePort:
    """Return a port, the same object for the same one: most of a cluster's slices have one of a few."""
    return SlicePort(name, protocol, port)


def _seconds(text: object) -> float:
    """Return when the change behind a slice was caused: RFC 3339, written by the EndpointSlice controller."""
    if not text:
        return 0.0
    try:
        return max(0.0, dt.datetime.fromisoformat(str(text)).timestamp())
    except (ValueError, OverflowError):
        return 0.0


def _weight(ref: Ref, text: object, problems: list[Problem]) -> int:
    if text is None:
        return 1
    if isinstance(text, str) and _NUMBER.fullmatch(text) and int(text) <= WEIGHT_MAX:
        return int(text)
    reason = f'{text!r} is not a weight ("1" to "{WEIGHT_MAX}"); 1 is used'
    problems.append(Problem(ref, annotation(WEIGHT), reason))
    return 1


def _nodes(items: list[schema.Endpoint]) -> tuple[str, ...]:
    """Return each endpoint's node, one string for a node however many endpoints it has; () when none has any."""
    names = [item.node_name for item in items]
    try:
        return tuple(map(intern, names))  # type: ignore[arg-type]
    except TypeError:  # some have none
        return tuple([intern(name or "") for name in names]) if any(names) else ()


def _hints(items: list[schema.Endpoint]) -> tuple[Hint, ...]:
    """Return each endpoint's hints, () when none has any: without ``trafficDistribution`` that is the rule."""
    given = [item.hints for item in items]
    if not any(given):
        return ()
    hints = tuple(
        [NO_HINT if each is None else _hint(_names(each.for_zones), _names(each.for_nodes)) for each in given]
    )
    return hints if any(hint is not NO_HINT for hint in hints) else ()


def _names(meant: list[schema.Meant] | None) -> tuple[str, ...]:
    return tuple([each.name for each in meant]) if meant else ()


@lru_cache(4096)
def _hint(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hint:
    """Return hints, the same object for the same ones: there are no more than zones and nodes, as a rule."""
    return Hint(tuple(map(intern, zones)), tuple(map(intern, nodes))) if zones or nodes else NO_HINT


def _endpoints(items: list[schema.Endpoint], *, ipv6: bool) -> tuple[bytes, dict[int, str]]:
    """Pack the endpoints, and say of which there is what wrong; those are left out.

    The hot path, so addresses are parsed by the C library and checked by their first bytes.
    """
    out, bad = [], {}
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    prefix = b"" if ipv6 else abi.V4_PREFIX
    parse, suspect = socket.inet_pton, _SUSPECT[ipv6]
    for index, item in enumerate(items):
        addresses, given = item.addresses, item.conditions
        text = addresses[0] if addresses else ""  # consumers must ignore all but the first (API reference)
        try:
            raw = parse(family, text)
        except (OSError, ValueError):
            raw = b""
        if not raw or raw[0] in suspect or (ipv6 and raw[:2] == b"\0\0"):
            reason = _refuse_endpoint(text, ipv6=ipv6)
            if reason:
                bad[index] = reason
                continue
        if given is not None and given.ready and given.serving and not given.terminating:
            out.append(prefix + raw + _HEALTHY)
        else:
            out.append(prefix + raw + _CONDITIONS[_conditions(given)])
    return b"".join(out), bad


_SUSPECT = {False: frozenset((0, 127, 169, *range(224, 256))), True: frozenset((0, 0xFE, 0xFF))}
_CONDITIONS = [bytes((value,)) for value in range(8)]
_HEALTHY = _CONDITIONS[Condition.READY | Condition.SERVING]


def _refuse_endpoint(text: str, *, ipv6: bool) -> str | None:
    """Say why an endpoint's address can't be used, or None; the slow look at what the quick one found suspicious."""
    try:
        address = parse_address(text, "")
    except BadField as error:
        return error.reason
    if (address.version == 6) != ipv6:
        return f"{text} is not of the slice's addressType"
    reason = unusable(address)
    return f"{text} is {reason}" if reason else None


def _conditions(given: schema.EndpointConditions | None) -> int:
    """Apply kube-proxy's defaults (pkg/proxy/endpointslicecache.go): ready, serving and not terminating."""
    if given is None:
        return Condition.READY | Condition.SERVING
    ready = given.ready is not False
    serving = given.serving is not False
    return ready * 1 + serving * 2 + bool(given.terminating) * 4
