"""Consistent sets: a connection's slot is a function of the connection, the same on every node."""

import struct
from collections import Counter
from collections.abc import Iterable

import pytest

from ebpfnet import abi
from ebpfnet.abi import Mark, SetFlag
from tests import packets
from tests.packets import CLIENT_PORT, SERVICE_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath
from tests.prog.serving import TRANSPORTS, calls, ends_of

SET, COUNT, NODE_PORT = 78, 53, 30080
PORTS = range(CLIENT_PORT, CLIENT_PORT + 200)
WORD = 0xFFFFFFFF


def lookup3(key: abi.Tuple) -> int:
    """Return hashword() of Bob Jenkins' lookup3.c over a tuple's ten words of network byte order, initval 0."""

    def rot(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & WORD

    words = struct.unpack("!10I", key.pack())
    a = b = c = (0xDEADBEEF + 4 * len(words)) & WORD
    for at in range(0, 9, 3):
        a, b, c = (a + words[at]) & WORD, (b + words[at + 1]) & WORD, (c + words[at + 2]) & WORD
        for bits in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & WORD) ^ rot(c, bits)
            c = (c + b) & WORD
            a, b, c = b, c, a
    a = (a + words[9]) & WORD
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rot(b, bits)) & WORD
        a, b, c = b, c, a
    return b


def slot_of(key: abi.Tuple) -> int:
    return lookup3(key) * COUNT >> 32


@pytest.fixture
def consistent(datapath: Datapath, ends: Ends) -> Datapath:
    offer(datapath, ends)
    return datapath


def offer(datapath: Datapath, ends: Ends, affinity_s: int = 0) -> None:
    """Let each slot's backend have a port of its own, which names the slot."""
    backends = [(ends.carol, 1000 + index) for index in range(COUNT)]
    serving.put_set(datapath, SET, backends, SetFlag.CONSISTENT)
    for protocol, _ in TRANSPORTS.values():
        service = abi.Service(SET, SET, affinity_s=affinity_s)
        serving.put_frontend(datapath, ends.service, service, SERVICE_PORT, protocol)
        serving.put_frontend(datapath, "::" if ends.ipv6 else "0.0.0.0", service, NODE_PORT, protocol)


def forget(datapath: Datapath, *tables: str) -> None:
    for name in tables:
        table = datapath.tables[name]
        table.delete_batch([key for key, _ in table.items()])


def slots(datapath: Datapath, ends: Ends, protocol: str, ports: Iterable[int] = PORTS) -> list[int]:
    """Return the slots that the connections from these ports came to, on a node that knows none of them."""
    forget(datapath, "flows", "affinity")
    got = [datapath.from_pod(calls(ends, protocol, sport=port)) for port in ports]
    return [ends_of(result).destination_port - 1000 for result in got]


@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_the_slot_is_lookup3_s(consistent: Datapath, ends: Ends, protocol: str) -> None:
    number = TRANSPORTS[protocol][0]
    keys = [packets.tuple_of(ends.alice, ends.service, port, SERVICE_PORT, number) for port in PORTS]
    assert slots(consistent, ends, protocol) == [slot_of(key) for key in keys]


def test_two_runs_agree(consistent: Datapath, ends: Ends) -> None:
    first = slots(consistent, ends, "tcp")
    assert slots(consistent, ends, "tcp") == first


def test_connections_spread_evenly(consistent: Datapath, ends: Ends) -> None:
    ports = range(20_000, 20_000 + 20 * COUNT)
    seen = Counter(slots(consistent, ends, "udp", ports))
    assert len(seen) == COUNT
    # chi-squared with 52 degrees of freedom: 100 is beyond its 99.99th percentile
    assert sum((number - 20) ** 2 / 20 for number in seen.values()) < 100


def test_a_node_port_is_the_same_on_every_node(consistent: Datapath, ends: Ends) -> None:
    any_address = "::" if ends.ipv6 else "0.0.0.0"
    expected = slot_of(packets.tuple_of(ends.alice, any_address, CLIENT_PORT, NODE_PORT, 6))
    for address in (ends.gateway, ends.outside):
        serving.mark(consistent, address, Mark.OWN | Mark.NODEPORTS)
        got = consistent.from_pod(calls(ends, "tcp", port=NODE_PORT, to=address))
        assert ends_of(got).destination_port - 1000 == expected
        forget(consistent, "flows")


def test_a_client_that_stays_stays_on_every_node(consistent: Datapath, ends: Ends) -> None:
    offer(consistent, ends, affinity_s=10)
    key = abi.Tuple(packets.raw(ends.alice), bytes(16), 0, 0, 0)
    found = set()
    for port in PORTS[:10]:
        found |= set(slots(consistent, ends, "tcp", [port]))
    assert found == {slot_of(key)}
