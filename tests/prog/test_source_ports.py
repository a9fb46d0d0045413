"""A client with thousands of flows to one backend: a new one still finds a source port to tell its answers by."""

from collections.abc import Iterator

import pytest

from ebpfnet import abi, clock
from ebpfnet.abi import FlowFlag, FlowState, Outcome
from ebpfnet.datapath import build
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog.conftest import SIZES
from tests.prog.loaded import Datapath, opened
from tests.prog.serving import calls, ends_of

UDP = abi.Protocol.UDP
NEW = 200


@pytest.fixture(scope="module")
def roomy(compiled: build.Object) -> Iterator[Datapath]:
    """Return programs with a table that holds all source ports, and evicts none of them."""
    with opened(compiled, SIZES | {"flows": 1 << 18}) as found:
        yield found


def fill(datapath: Datapath, ends: Ends) -> None:
    """Let every second source port be one of Alice's, as of another service's flows; also those she will use."""
    alice, bob = abi.Wire(ALICE_IFINDEX, bytes(6)), abi.Wire(BOB_IFINDEX, bytes(6))
    taken = {*range(32768, 65536, 2), *range(CLIENT_PORT, CLIENT_PORT + NEW)}
    keys, values = [], []
    for port in taken:
        key = packets.tuple_of(ends.bob, ends.alice, POD_PORT, port, UDP)
        other = packets.tuple_of(ends.alice, ends.lonely, port, SERVICE_PORT, UDP)
        flags = FlowFlag.REPLY | FlowFlag.NAT
        flow = abi.Flow(other.reverse(), clock.kernel_ns(), 0, 0, bob, alice, FlowState.ESTABLISHED, flags, 0)
        keys.append(key.pack())
        values.append(flow.pack())
    datapath.tables["flows"].put_batch(keys, values)


def test_thousands_of_flows_are_in_no_one_s_way(roomy: Datapath, ends: Ends) -> None:
    roomy.clear()
    roomy.set_service(ends.service, SERVICE_PORT, UDP, [(ends.bob, POD_PORT)], 9)
    fill(roomy, ends)
    asked = [roomy.from_pod(calls(ends, "udp", sport=CLIENT_PORT + number)) for number in range(NEW)]
    assert [each.reason for each in asked if each.outcome != Outcome.POD] == []
    ports = {ends_of(each).source_port for each in asked}
    assert len(ports) == NEW
    assert all(port % 2 and not CLIENT_PORT <= port < CLIENT_PORT + NEW for port in ports)
    for number, each in enumerate(asked):
        answer = packets.udp(POD_PORT, ends_of(each).source_port)
        sent = packets.ethernet(packets.BOB_MAC) / packets.ip(ends.bob, ends.alice) / answer
        back = ends_of(roomy.from_pod(sent, BOB_IFINDEX))
        assert back == (ends.service, ends.alice, SERVICE_PORT, CLIENT_PORT + number)
