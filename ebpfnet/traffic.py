"""What went through each service, and what policies decided: as many names as are asked for, one row for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.maps.hits import by_policy, hits
from ebpfnet.maps.table import Table
from ebpfnet.maps.usage import used
from ebpfnet.operate.snapshot import Decided, Traffic
from ebpfnet.operate.tally import OTHER


def traffic(tables: Mapping[str, Table], limit: int) -> Iterator[Traffic]:
    """Yield the ``limit`` services with the most bytes, and the sum of all others; raises ``TableError``.

    The endpoint sets of one service port are one: its name is what tells services apart.
    """
    sums: dict[int, list[int]] = {}
    for set_id, _, *counts in used(tables["usage"]):
        sums[set_id] = [one + more for one, more in zip(sums.get(set_id, (0, 0, 0)), counts, strict=True)]
    services: dict[str, list[int]] = {}
    for set_id, counts in sums.items():
        name = _service(tables["names"], set_id)
        services[name] = [one + more for one, more in zip(services.get(name, (0, 0, 0)), counts, strict=True)]
    rest = services.pop(OTHER, [0, 0, 0])
    for place, (name, counts) in enumerate(sorted(services.items(), key=lambda each: (-each[1][2], each[0]))):
        if place < limit:
            yield Traffic(name, *counts)
        else:
            rest = [one + more for one, more in zip(rest, counts, strict=True)]
    if any(rest):
        yield Traffic(OTHER, *rest)


VERDICTS = ("allowed", "denied", "audited")


def decided(tables: Mapping[str, Table], limit: int) -> Iterator[Decided]:
    """Yield what the ``limit`` policies decided that decided most, and the sum of all others; raises ``TableError``."""
    found = by_policy(hits(tables["rule_hits"]), lambda rule: _name(tables["names"], rule))
    sums = {policy: list(hit[1:]) for policy, hit in found.items()}
    rest = [0, 0, 0]
    for place, (policy, counts) in enumerate(sorted(sums.items(), key=lambda each: (-sum(each[1]), each[0]))):
        if place >= limit:
            rest = [one + more for one, more in zip(rest, counts, strict=True)]
            continue
        yield from (Decided(policy, *each) for each in zip(VERDICTS, counts, strict=True))
    if any(rest):
        yield from (Decided(OTHER, *each) for each in zip(VERDICTS, rest, strict=True))


def _name(names: Table, identity: int) -> str:
    raw = names.get(identity.to_bytes(8, "little"))
    return abi.unpack_name(raw) if raw else ""


def _service(names: Table, set_id: int) -> str:
    """Return NAMESPACE/NAME:PORT of a set; of one that is gone nobody knows the name."""
    return _name(names, set_id).removesuffix("#local") or OTHER
