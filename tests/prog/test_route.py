"""What the kernel's routing table says, with one to ask: an uplink, a router behind it, and a default route."""

import itertools
import subprocess

import pytest
from scapy.all import IP, TCP, IPv6, IPv6ExtHdrHopByHop, Jumbo

from ebpfnet.abi import Outcome
from tests import packets
from tests.packets import ALICE_IFINDEX, CLIENT_PORT, POD_PORT, V4, V6, Ends
from tests.prog.loaded import Datapath

ROUTED_IFINDEX = 77
OUR_MAC, ROUTER_MAC = "02:00:00:00:07:01", "02:00:00:00:07:02"
ROUTES = f"""
link add alice index {ALICE_IFINDEX} type veth peer name pod
link add routed index {ROUTED_IFINDEX} address {OUR_MAC} type veth peer name router
link set lo up
link set alice up
link set pod up
link set routed up
link set router up
addr add 192.0.2.1/24 dev routed
addr add 2001:db8:7::1/64 dev routed nodad
neigh add 192.0.2.2 lladdr {ROUTER_MAC} dev routed nud permanent
neigh add 2001:db8:7::2 lladdr {ROUTER_MAC} dev routed nud permanent
route add default via 192.0.2.2
route add default via 2001:db8:7::2
"""
FORWARDING = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


@pytest.fixture
def routed(datapath: Datapath) -> Datapath:
    """Return the programs in a namespace with a default route."""
    subprocess.run(["sysctl", "-qw", *FORWARDING], check=True)
    subprocess.run(["ip", "-batch", "-"], input=ROUTES, text=True, check=True)
    return datapath


def test_to_another_node_past_the_stack(routed: Datapath, ends: Ends) -> None:
    got = routed.from_pod(packets.ethernet() / packets.ip(ends.alice, ends.carol, ttl=64) / packets.udp(dport=POD_PORT))
    assert (got.outcome, got.ifindex) == (Outcome.NETWORK, ROUTED_IFINDEX)
    assert (got.packet.src, got.packet.dst) == (OUR_MAC, ROUTER_MAC)
    assert (got.packet[IPv6].hlim if ends.ipv6 else got.packet[IP].ttl) == 63
    assert packets.has_right_checksums(got.raw)


@pytest.mark.parametrize("group", ["224.0.0.251", "239.1.2.3", "255.255.255.255", "240.0.0.1", "0.0.0.9", "ff02::fb"])
def test_what_is_not_for_one_host_is_the_stack_s(routed: Datapath, group: str) -> None:
    ends = V6 if ":" in group else V4
    sent = packets.ethernet() / packets.ip(ends.alice, group, ttl=64) / packets.udp(5353, 5353)
    got = routed.from_pod(sent)
    assert (got.outcome, got.raw) == (Outcome.STACK, bytes(sent))


OPTIONS = {"none": [], "timestamps": [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_train_is_as_long_as_its_segments(routed: Datapath, ends: Ends, options: str) -> None:
    """The link takes 1,500 bytes, and a train is cut into segments before: those count."""
    ip = packets.ip(ends.alice, ends.carol)
    tcp = TCP(sport=CLIENT_PORT, dport=POD_PORT, flags="A", options=OPTIONS[options])
    room = 1500 - len(ip / tcp)
    train = packets.ethernet() / ip / tcp / bytes(2000)
    assert routed.run("from_pod", train, gso=(2, room)).outcome == Outcome.NETWORK
    assert routed.run("from_pod", train, gso=(2, room + 1)).outcome == Outcome.STACK


def test_the_header_of_big_tcp_is_not_on_the_wire(routed: Datapath) -> None:
    jumbo = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=0)])
    tcp = TCP(sport=CLIENT_PORT, dport=POD_PORT, flags="A")
    train = bytearray(bytes(packets.ethernet() / IPv6(src=V6.alice, dst=V6.carol) / jumbo / tcp / bytes(2000)))
    train[18:20] = bytes(2)  # the payload's length is in the jumbo option
    room = 1500 - 40 - 20
    assert routed.run("from_pod", bytes(train), gso=(2, room)).outcome == Outcome.NETWORK
    assert routed.run("from_pod", bytes(train), gso=(2, room + 1)).outcome == Outcome.STACK


@pytest.mark.parametrize("change", ["neighbour", "route"])
def test_a_change_is_heeded_at_the_next_tick(routed: Datapath, ends: Ends, change: str) -> None:
    """What the table said is kept for as long as the coarse clock stands."""
    sent = packets.ethernet() / packets.ip(ends.alice, ends.carol, ttl=64) / packets.udp(dport=POD_PORT)
    assert routed.from_pod(sent).outcome == Outcome.NETWORK
    router = "2001:db8:7::2" if ends.ipv6 else "192.0.2.2"
    away = ["neigh", "replace", router, "lladdr", "02:00:00:00:07:09", "dev", "routed", "nud", "permanent"]
    closed = ["-6" if ends.ipv6 else "-4", "route", "del", "default"]
    subprocess.run(["ip", *(away if change == "neighbour" else closed)], check=True)
    before = (Outcome.NETWORK, ROUTER_MAC)
    after = (Outcome.NETWORK, "02:00:00:00:07:09") if change == "neighbour" else (Outcome.STACK, None)
    for _ in range(100_000):
        got = routed.from_pod(sent)
        seen = (got.outcome, got.packet.dst if got.outcome == Outcome.NETWORK else None)
        if seen == after:
            break
        assert seen == before
    assert seen == after


def test_a_way_is_kept_for_its_own_ends_alone(routed: Datapath, ends: Ends) -> None:
    """Many of them share a place."""
    prefix, routers = ("2001:db8:5::", "2001:db8:7::1:") if ends.ipv6 else ("198.18.0.", "192.0.2.")
    macs = {str(number): f"02:00:00:00:08:{number:02x}" for number in range(100, 250)}
    lines = [f"neigh add {routers}{each} lladdr {macs[each]} dev routed nud permanent" for each in macs]
    lines += [f"route add {prefix}{each} via {routers}{each}" for each in macs]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    for port, each in itertools.product((1, 2), macs):
        got = routed.from_pod(packets.ethernet() / packets.ip(ends.alice, prefix + each) / packets.udp(port, POD_PORT))
        assert (got.outcome, got.packet.dst) == (Outcome.NETWORK, macs[each])


def test_a_way_is_kept_for_its_type_of_service(routed: Datapath) -> None:
    lines = ["neigh add 192.0.2.9 lladdr 02:00:00:00:07:09 dev routed nud permanent"]
    lines += ["route add default tos 0x10 via 192.0.2.9"]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    for tos, mac in ((0, ROUTER_MAC), (0x10, "02:00:00:00:07:09")) * 2:
        sent = packets.ethernet() / packets.ip(V4.alice, V4.carol, tos=tos) / packets.udp(dport=POD_PORT)
        assert routed.from_pod(sent).packet.dst == mac


@pytest.mark.parametrize("first", ["small", "large"])
def test_a_way_that_is_kept_takes_no_more_than_it_may(routed: Datapath, ends: Ends, first: str) -> None:
    sent = {
        size: packets.ethernet() / packets.ip(ends.alice, ends.carol) / packets.udp(dport=POD_PORT, data=bytes(length))
        for size, length in (("small", 100), ("large", 1500))
    }
    for size in (first, "small", "large", "small"):
        assert routed.from_pod(sent[size]).outcome == (Outcome.NETWORK if size == "small" else Outcome.STACK)
