"""CHECKSUM_COMPLETE: a card gave the sum of the whole packet, and it must follow every change.

The kernel itself compares after a test run; one that is too old for that only runs the programs.
"""

import errno
from collections.abc import Callable

import pytest
from scapy.all import IP, IPv6ExtHdrFragment, Packet, Raw, fragment, fragment6

from ebpfnet.abi import Outcome
from ebpfnet.datapath import testrun
from tests import packets
from tests.packets import CLIENT_PORT, POD_PORT, SERVICE_PORT, STRANGER_MAC, UPLINK_IFINDEX, UPLINK_MAC, Ends
from tests.prog.loaded import Datapath

BUILDERS: dict[str, Callable[..., Packet]] = {"tcp": packets.tcp, "udp": packets.udp}


def outcome(datapath: Datapath, packet: Packet) -> Outcome:
    """Send a packet from the network, with its sum; raises ``OSError`` when the sum is wrong afterwards."""
    fd = datapath.programs["from_network"].fd
    try:
        done = testrun.run(fd, bytes(packet), ingress_ifindex=UPLINK_IFINDEX, checksum_complete=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        done = testrun.run(fd, bytes(packet), ingress_ifindex=UPLINK_IFINDEX)
    return Outcome(done.cb[0])


def from_carol(ends: Ends) -> Packet:
    return packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice)


@pytest.fixture
def only_carol(datapath: Datapath, ends: Ends) -> Datapath:
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.carol, POD_PORT)], 70 + protocol)
    return datapath


@pytest.mark.parametrize("protocol", BUILDERS)
def test_without_nat(datapath: Datapath, ends: Ends, protocol: str) -> None:
    assert outcome(datapath, from_carol(ends) / BUILDERS[protocol](dport=POD_PORT)) == Outcome.POD


@pytest.mark.parametrize("protocol", BUILDERS)
def test_an_answer_through_nat(only_carol: Datapath, ends: Ends, protocol: str) -> None:
    build = BUILDERS[protocol]
    only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / build())
    assert outcome(only_carol, from_carol(ends) / build(sport=POD_PORT, dport=CLIENT_PORT)) == Outcome.POD


def test_an_answer_in_fragments(only_carol: Datapath, ends: Ends) -> None:
    only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    answer = packets.udp(POD_PORT, CLIENT_PORT, bytes(range(250)) * 6)
    if ends.ipv6:
        cut = fragment6(packets.ip(ends.carol, ends.alice) / IPv6ExtHdrFragment(id=9) / answer, 900)
    else:
        cut = fragment(IP(bytes(packets.ip(ends.carol, ends.alice, id=9) / answer)), 800)
    header = packets.ethernet(STRANGER_MAC, UPLINK_MAC)
    assert [outcome(only_carol, header / piece) for piece in cut] == [Outcome.POD] * 2


def test_an_error_through_nat(only_carol: Datapath, ends: Ends) -> None:
    there = only_carol.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp())
    error = packets.unreachable(ends, Raw(there.raw[14:]))
    assert outcome(only_carol, from_carol(ends) / error) == Outcome.POD
