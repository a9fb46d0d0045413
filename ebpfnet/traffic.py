"""What went through each service, for metrics: as many names as are asked for, and one row for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.maps.table import Table
from ebpfnet.maps.usage import used
from ebpfnet.operate.snapshot import Traffic
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


def _service(names: Table, set_id: int) -> str:
    """Return NAMESPACE/NAME:PORT of a set; of one that is gone nobody knows the name."""
    raw = names.get(set_id.to_bytes(8, "little"))
    return OTHER if raw is None else abi.unpack_name(raw).removesuffix("#local")
