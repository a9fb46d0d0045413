"""Which flows are over."""

from __future__ import annotations

import pytest

from ebpfnet import abi
from ebpfnet.abi import FlowFlag, FlowState, Protocol
from ebpfnet.reconcile.sweep import SECOND, over

NOW = 100_000 * SECOND


def entry(protocol: int, state: FlowState, idle_s: float, ifindex: int = 1) -> tuple[bytes, bytes]:
    key = abi.Tuple(bytes(16), bytes(16), 1, 2, protocol)
    wires = (abi.Wire(ifindex, bytes(6)), abi.Wire(0, bytes(6)))
    flow = abi.Flow(key, NOW - int(idle_s * SECOND), 0, *wires, state, FlowFlag(0), 0)
    return key.pack(), flow.pack()


@pytest.mark.parametrize(
    ("protocol", "state", "limit_s"),
    [
        (Protocol.TCP, FlowState.NEW, abi.TIMEOUT_TCP_NEW_S),
        (Protocol.TCP, FlowState.ESTABLISHED, abi.TIMEOUT_TCP_ESTABLISHED_S),
        (Protocol.TCP, FlowState.CLOSING, abi.TIMEOUT_TCP_CLOSING_S),
        (Protocol.SCTP, FlowState.ESTABLISHED, abi.TIMEOUT_TCP_ESTABLISHED_S),
        (Protocol.UDP, FlowState.NEW, abi.TIMEOUT_DATAGRAM_NEW_S),
        (Protocol.UDP, FlowState.ESTABLISHED, abi.TIMEOUT_DATAGRAM_ESTABLISHED_S),
        (Protocol.ICMP, FlowState.NEW, abi.TIMEOUT_DATAGRAM_NEW_S),
    ],
)
def test_time_outs(protocol: Protocol, state: FlowState, limit_s: int):
    assert not list(over(*entry(protocol, state, limit_s - 1), NOW))
    assert list(over(*entry(protocol, state, limit_s + 1), NOW))


def test_only_the_keys_that_are_over():
    old, young = entry(Protocol.UDP, FlowState.NEW, 1000), entry(Protocol.TCP, FlowState.NEW, 1)
    assert list(over(young[0] + old[0], young[1] + old[1], NOW)) == [old[0]]


def test_flows_of_an_interface_that_is_gone():
    assert list(over(*entry(Protocol.TCP, FlowState.ESTABLISHED, 0, ifindex=7), NOW, gone={7}))
    assert not list(over(*entry(Protocol.TCP, FlowState.ESTABLISHED, 0, ifindex=8), NOW, gone={7}))


def test_a_packet_later_than_our_clock_is_young():
    assert not list(over(*entry(Protocol.UDP, FlowState.NEW, -5), NOW))
