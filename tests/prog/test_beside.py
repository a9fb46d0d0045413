"""from_pod_beside and to_pod_beside: services on another CNI plugin's wires, and nothing else."""

import pytest
from scapy.all import ARP, DHCP, ICMP, IP, UDP, Dot1Q, Ether, IPv6, Packet, Raw

from ebpfnet import abi
from ebpfnet.abi import DropReason, FlowFlag, Outcome
from tests import packets
from tests.packets import (
    ALICE_IFINDEX,
    ALICE_MAC,
    BOB_IFINDEX,
    BOB_MAC,
    CLIENT_PORT,
    GATEWAY_MAC,
    POD_PORT,
    SERVICE_PORT,
    STRANGER_MAC,
    UPLINK_MAC,
    Ends,
)
from tests.prog.loaded import Datapath, Result

BRIDGE, ROUTED = 7, 1
NEXT = 2**32 - 1


def beside(datapath: Datapath, ends: Ends, segment: int) -> None:
    """Say that Alice's and Bob's wires are another plugin's; the service leads to Bob alone."""
    for address, ifindex, mac in ((ends.alice, ALICE_IFINDEX, ALICE_MAC), (ends.bob, BOB_IFINDEX, BOB_MAC)):
        wire = abi.Wire(ifindex, bytes.fromhex(mac.replace(":", "")), segment)
        datapath.tables["pods"].put(packets.raw(address), abi.Pod(wire, ifindex).pack())
    for protocol in (6, 17):
        datapath.set_service(ends.service, SERVICE_PORT, protocol, [(ends.bob, POD_PORT)], 900 + protocol)


def leaves(datapath: Datapath, packet: Packet | bytes, ifindex: int = ALICE_IFINDEX) -> Result:
    return datapath.run("from_pod_beside", packet, ifindex)


def arrives(datapath: Datapath, packet: Packet) -> Result:
    return datapath.run("to_pod_beside", packet, 0)


def called(ends: Ends, **fields: int) -> Packet:
    return packets.ethernet() / packets.ip(ends.alice, ends.service, **fields)


@pytest.mark.parametrize(("segment", "mac"), [(ROUTED, GATEWAY_MAC), (BRIDGE, BOB_MAC)], ids=["routed", "bridged"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_there_and_back(datapath: Datapath, ends: Ends, segment: int, mac: str, transport: str) -> None:
    """The packet takes the plugin's way, hop limit and all, and its answer is translated where it arrives."""
    beside(datapath, ends, segment)
    ask = {"tcp": packets.tcp(), "udp": packets.udp()}[transport]
    got = leaves(datapath, called(ends) / ask)
    ask.dport = POD_PORT
    assert (got.outcome, got.retval) == (Outcome.STACK, NEXT)
    assert got.raw == bytes(packets.ethernet(destination=mac) / packets.ip(ends.alice, ends.bob) / ask)
    answer = packets.tcp("SA", POD_PORT, CLIENT_PORT) if transport == "tcp" else packets.udp(POD_PORT, CLIENT_PORT)
    sent = packets.ethernet(BOB_MAC, ALICE_MAC) / packets.ip(ends.bob, ends.alice) / answer
    assert leaves(datapath, sent, BOB_IFINDEX).raw == bytes(sent)
    got = arrives(datapath, sent)
    answer.sport = SERVICE_PORT
    assert got.raw == bytes(packets.ethernet(BOB_MAC, ALICE_MAC) / packets.ip(ends.service, ends.alice) / answer)
    assert {flow.flags & FlowFlag.BESIDE for flow in datapath.flows().values()} == {FlowFlag.BESIDE}


def test_without_knowing_the_pod(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, BRIDGE)
    datapath.tables["pods"].delete(packets.raw(ends.alice))
    got = leaves(datapath, called(ends) / packets.udp())
    assert got.packet.dst == GATEWAY_MAC
    answer = packets.ip(ends.bob, ends.alice) / packets.udp(POD_PORT, CLIENT_PORT)
    expected = packets.ip(ends.service, ends.alice) / packets.udp(SERVICE_PORT, CLIENT_PORT)
    assert arrives(datapath, packets.ethernet() / answer).raw == bytes(packets.ethernet() / expected)


def test_hairpin_goes_straight_back(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, BRIDGE)
    sent = packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.udp()
    got = leaves(datapath, sent)
    assert (got.outcome, got.ifindex, got.packet.dst) == (Outcome.POD, ALICE_IFINDEX, ALICE_MAC)
    answer = packets.ethernet() / packets.ip(ends.alice, ends.lonely) / packets.udp(POD_PORT, CLIENT_PORT)
    back = leaves(datapath, answer)
    expected = packets.ip(ends.lonely, ends.alice, ttl=63) / packets.udp(SERVICE_PORT, CLIENT_PORT)
    assert (back.outcome, back.raw) == (Outcome.POD, bytes(packets.ethernet(GATEWAY_MAC, ALICE_MAC) / expected))


def test_no_endpoints_are_refused(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, ROUTED)
    got = leaves(datapath, packets.ethernet() / packets.ip(ends.alice, ends.empty) / packets.tcp())
    assert (got.outcome, got.reason, got.ifindex) == (Outcome.REJECT, DropReason.NO_ENDPOINTS, ALICE_IFINDEX)


def test_the_middle_of_an_unknown_connection_is_somebody_else_s(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, ROUTED)
    sent = called(ends) / packets.tcp("A")
    assert leaves(datapath, sent).raw == bytes(sent)
    assert not datapath.flows()


def test_a_destination_that_becomes_a_service(datapath: Datapath, ends: Ends) -> None:
    sent = packets.ethernet() / packets.ip(ends.alice, ends.service) / packets.udp(dport=99)
    assert leaves(datapath, sent).raw == bytes(sent)
    datapath.set_service(ends.service, 99, 17, [(ends.bob, POD_PORT)], 77)
    assert leaves(datapath, sent).raw != bytes(sent)


def test_a_direct_call_from_the_same_port_is_kept_apart(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, ROUTED)
    leaves(datapath, called(ends) / packets.udp())
    direct = leaves(datapath, packets.ethernet() / packets.ip(ends.alice, ends.bob) / packets.udp(dport=POD_PORT))
    assert direct.packet[UDP].sport != CLIENT_PORT
    answer = packets.ip(ends.bob, ends.alice) / packets.udp(POD_PORT, direct.packet[UDP].sport)
    got = arrives(datapath, packets.ethernet() / answer)
    assert got.raw == bytes(packets.ethernet() / packets.ip(ends.bob, ends.alice) / packets.udp(POD_PORT, CLIENT_PORT))


OTHERS = {
    "arp": packets.ethernet(STRANGER_MAC) / ARP(psrc="10.9.9.9"),
    "unknown": packets.ethernet(STRANGER_MAC) / Raw(bytes(60)),
    "dhcp": Ether(dst="ff:ff:ff:ff:ff:ff")
    / IP(src="0.0.0.0", dst="255.255.255.255")
    / UDP(sport=68, dport=67)
    / DHCP(),
    "multicast": Ether(dst="01:00:5e:00:00:fb") / IP(src="10.1.1.10", dst="224.0.0.251") / UDP(sport=5353, dport=5353),
    "link-local": packets.ethernet() / IPv6(src="fe80::a", dst="fe80::b") / packets.tcp(),
    "protocol": packets.ethernet() / IP(src="10.1.1.10", dst="10.1.1.11", proto=47) / Raw(bytes(20)),
    "redirect": packets.ethernet() / IP(src="10.1.1.10", dst="10.1.1.11") / ICMP(type=5),
    "spoofed": packets.ethernet(STRANGER_MAC) / IP(src="10.1.1.11", dst="10.1.2.12") / packets.tcp(),
    "vlan": packets.ethernet() / Dot1Q(vlan=5) / IP(src="10.1.1.10", dst="10.96.0.1") / packets.tcp(),
    "later fragment": packets.ethernet() / IP(src="10.1.1.10", dst="10.96.0.1", frag=100, proto=17) / Raw(bytes(64)),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("program", ["from_pod_beside", "to_pod_beside"])
def test_everything_else_passes_as_it_is(datapath: Datapath, what: str, program: str) -> None:
    beside(datapath, packets.V4, BRIDGE)
    got = datapath.run(program, OTHERS[what], ALICE_IFINDEX)
    assert (got.outcome, got.retval, got.raw) == (Outcome.STACK, NEXT, bytes(OTHERS[what]))


def test_an_error_about_the_backend_becomes_one_about_the_service(datapath: Datapath, ends: Ends) -> None:
    beside(datapath, ends, ROUTED)
    got = leaves(datapath, called(ends) / packets.udp())
    quoted = got.packet[IPv6] if ends.ipv6 else got.packet[IP]
    error = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.alice) / packets.unreachable(ends, quoted)
    assert leaves(datapath, error, BOB_IFINDEX).raw == bytes(error)
    translated = arrives(datapath, error).packet
    header = translated[IPv6] if ends.ipv6 else translated[IP]
    assert header.src == ends.service
    assert packets.raw(ends.service)[-4:] in bytes(header.payload)


def test_from_outside_it_is_the_stack_s(datapath: Datapath, ends: Ends) -> None:
    """Through the host's own filters and conntrack, both ways."""
    beside(datapath, ends, ROUTED)
    sent = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / packets.ip(ends.carol, ends.alice) / packets.tcp(dport=80)
    assert datapath.from_network(sent).raw == bytes(sent)
    assert not datapath.flows()
    datapath.set_service(ends.service, SERVICE_PORT, 17, [(ends.carol, POD_PORT)], 78)
    leaves(datapath, called(ends) / packets.udp())
    answer = packets.ip(ends.carol, ends.alice) / packets.udp(POD_PORT, CLIENT_PORT)
    sent = packets.ethernet(STRANGER_MAC, UPLINK_MAC) / answer
    got = datapath.from_network(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))
