"""Random events, of everything that the tables follow from."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st

from ebpfnet.model.facts import Delete, Hint, Upsert
from ebpfnet.reconcile import reconciler as reconciler_module
from tests.cluster import TCP, host, node, piece, pod, service, wire
from tests.cluster import run as run_anywhere

NAMES = ("a", "b", "c")
HOST = host(
    addresses=["192.168.0.1"],
    nodeport_addresses=["192.168.0.1"],
    sources=["192.168.0.1"],
    service_cidrs=["10.96.0.0/16"],
    external_ip_cidrs=["192.0.2.0/24"],
)


class Reconciler(reconciler_module.Reconciler):
    """One that knows its host."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.set_host(HOST)


run = functools.partial(run_anywhere, on=HOST)
numbers = st.lists(st.integers(1, 12), unique=True, max_size=12)
addresses = numbers.map(lambda some: [f"10.0.0.{n}" for n in some])
HINTS = (Hint(), Hint(("zone-a",)), Hint(("zone-b",)), Hint(("zone-a",), ("node-a",)), Hint(("zone-a",), ("node-b",)))
plain_services = st.one_of(
    st.builds(lambda n, ip: Upsert(service(n, f"10.96.0.{ip}")), st.sampled_from(NAMES), st.integers(1, 4)),
    st.builds(
        lambda n, ip, port: Upsert(service(n, f"10.96.0.{ip}", ports=[("", TCP, port)])),
        st.sampled_from(NAMES),
        st.integers(1, 4),
        st.integers(80, 82),
    ),
    st.builds(
        lambda n, ip, ports: Upsert(service(n, f"10.96.0.{ip}", ports=[("http", TCP, ports[0]), ("x", TCP, ports[1])])),
        st.sampled_from(NAMES),
        st.integers(1, 2),
        st.permutations([80, 81, 82]),
    ),
)
rich_services = st.builds(
    lambda n, ip, port, node_port, **more: Upsert(
        service(n, f"10.96.0.{ip}", ports=[("http", TCP, port, node_port)], **more)
    ),
    st.sampled_from(NAMES),
    st.integers(1, 3),
    st.integers(80, 81),
    st.sampled_from([0, 30080, 30081]),
    internal_local=st.booleans(),
    external_local=st.booleans(),
    affinity_s=st.sampled_from([0, 0, 10800]),
    consistent=st.booleans(),
    direct=st.sampled_from([None, None, False, True]),
    load_balancer_ips=st.sampled_from([(), ("192.0.2.1",), ("192.0.2.1", "192.0.2.2")]),
    external_ips=st.sampled_from([(), ("192.0.2.2",), ("198.51.100.1",)]),
    source_ranges=st.sampled_from([None, ("10.0.0.0/8",), ("192.168.0.0/24", "10.0.0.0/8")]),
)
plain_slices = st.one_of(
    st.builds(
        lambda n, ready: Upsert(piece(n, "x", ready, ports=[("", TCP, 8080), ("http", TCP, 8081)])),
        st.sampled_from(NAMES),
        addresses,
    ),
    st.builds(lambda n, s, ready: Upsert(piece(n, s, ready)), st.sampled_from(NAMES), st.sampled_from("xy"), addresses),
)
rich_slices = st.builds(
    lambda n, s, every, ready, here, weight, hint, bare: Upsert(
        piece(
            n,
            s,
            every[:ready],
            leaving=every[ready:],
            here=every[::here],
            weight=weight,
            hints={each: hint for index, each in enumerate(every) if index != bare} if hint else None,
        )
    ),
    st.sampled_from(NAMES),
    st.sampled_from("xy"),
    addresses,
    st.integers(0, 12),
    st.integers(1, 13),
    st.sampled_from([1, 1, 1, 3]),
    st.sampled_from((None, *HINTS)),
    st.integers(0, 12),
)
events = st.one_of(
    plain_services,
    rich_services,
    plain_slices,
    rich_slices,
    st.builds(lambda n: Delete(service(n).ref), st.sampled_from(NAMES)),
    st.builds(lambda n, s: Delete(piece(n, s, []).ref), st.sampled_from(NAMES), st.sampled_from("xy")),
    st.builds(lambda zone: Upsert(node(zone=zone)), st.sampled_from(["", "zone-a", "zone-b"])),
    st.builds(
        lambda name, ip: Upsert(node(name, addresses=[f"192.168.0.{ip}"])),
        st.sampled_from(["node-b", "node-c"]),
        st.integers(1, 3),
    ),
    st.builds(lambda name: Delete(node(name).ref), st.sampled_from(["node-b", "node-c"])),
    st.builds(lambda n, ip: Upsert(pod(n, f"10.0.9.{ip}")), st.sampled_from(NAMES), st.integers(1, 4)),
    st.builds(lambda n: Delete(pod(n).ref), st.sampled_from(NAMES)),
)
WIRES = {f"default/{name}": wire(index + 1) for index, name in enumerate(NAMES)}
