"""ICMP errors come back to the client as if the service's address were a machine."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
from dataclasses import dataclass

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab

# linux/in.h, linux/in6.h, linux/errqueue.h
IP_MTU_DISCOVER, IP_RECVERR, IP_MTU = 10, 11, 14
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR = 23, 24, 25
PMTUDISC_DO = 2
ORIGIN_ICMP, ORIGIN_ICMP6 = 2, 3


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that the kernel queued for a socket: what, from whom, about a packet to whom."""

    errno: int
    origin: int
    type: int
    code: int
    info: int
    offender: str
    destination: tuple[str, int]


def test_closed_udp_port_of_a_backend_refuses_the_client(lab: Lab, caller: Inside, distance: str, family: int):
    with pytest.raises(ConnectionRefusedError):
        client.udp(caller, lab.service(f"{distance}-closed").of(family), 9)


def test_closed_tcp_port_of_a_backend_refuses_the_client(lab: Lab, caller: Inside, distance: str, family: int):
    with pytest.raises(ConnectionRefusedError):
        client.tcp(caller, lab.service(f"{distance}-closed").of(family), 9)


def test_port_unreachable_names_the_service(lab: Lab, caller: Inside, distance: str, family: int):
    address = lab.service(f"{distance}-closed").of(family)
    failure = provoke(caller, address, 9, {})
    assert failure.origin == (ORIGIN_ICMP6 if family == socket.AF_INET6 else ORIGIN_ICMP)
    assert (failure.type, failure.code) == ((1, 4) if family == socket.AF_INET6 else (3, 3))
    assert (failure.offender, failure.destination) == (address, (address, 9))


def test_hop_limit_one_ends_at_the_clients_node(lab: Lab, caller: Inside, family: int):
    failure = probe(lab, caller, family, hops=1)
    assert failure.offender in lab.node("node-a").addresses


def test_hop_limit_two_ends_at_the_backends_node(lab: Lab, caller: Inside, family: int):
    failure = probe(lab, caller, family, hops=2)
    assert failure.offender in lab.node("node-b").addresses


def test_traceroute_through_a_service_shows_both_nodes(lab: Lab, caller: Inside, family: int):
    address = lab.service("far-dns").of(family)
    done = caller.exec("traceroute", "-n", "-q", "1", "-w", "2", "-m", "5", "-U", "-p", "53", address)
    hops = [line.split()[1] for line in done.stdout.splitlines()[1:3]]
    assert hops == [lab.node("node-a").of(family), lab.node("node-b").of(family)], done.stdout


def test_tcp_finds_the_smaller_mtu(narrow: Lab, family: int):
    caller = narrow.pod("client")
    answer = client.tcp(caller, narrow.service("far").of(family), 80, b"pad=1000000 " + b"y" * 500_000 + b"\n", 10)
    assert (len(answer.pad), answer.bytes) == (1_000_000, 500_013)


def test_tcp_between_pods_finds_the_smaller_mtu(narrow: Lab, family: int):
    target = narrow.pod("web-b").of(family)
    answer = client.tcp(narrow.pod("client"), target, 8080, b"pad=1000000 " + b"y" * 500_000 + b"\n", 10)
    assert len(answer.pad) == 1_000_000


def test_udp_that_must_not_be_fragmented_learns_the_mtu(narrow: Lab, family: int):
    v6 = family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    with narrow.pod("client").socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(level, IPV6_MTU_DISCOVER if v6 else IP_MTU_DISCOVER, PMTUDISC_DO)
        sock.connect((narrow.service("far-dns").of(family), 53))
        sock.send(b"small")
        sock.recv(2048)
        sock.send(b"x" * 1450)
        with pytest.raises(OSError, match="Message too long"):
            sock.recv(2048)
        assert sock.getsockopt(level, IPV6_MTU if v6 else IP_MTU) == 1400
        sock.send(b"x" * 1300)
        assert client.parse(sock.recv(2048)).bytes == 1300


def test_a_large_udp_answer_arrives_after_the_server_learned_the_mtu(narrow: Lab, family: int):
    """The first large answer is what tells the server; a UDP client asks again (RFC 1191 §6.5)."""
    with narrow.pod("client").socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((narrow.service("far-dns").of(family), 53))
        for _ in range(3):
            sock.send(b"pad=1400")
            try:
                assert len(client.parse(sock.recv(65535)).pad) == 1400
            except TimeoutError:
                continue
            return
    pytest.fail("three questions, no answer")


def probe(lab: Lab, caller: Inside, family: int, hops: int) -> Failure:
    """Send one datagram with a hop limit through a service on the other node, and return the time exceeded."""
    v6 = family == socket.AF_INET6
    address = lab.service("far-dns").of(family)
    option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if v6 else (socket.IPPROTO_IP, socket.IP_TTL)
    failure = provoke(caller, address, 53, {option: hops})
    assert (failure.type, failure.code) == ((3, 0) if v6 else (11, 0))
    assert failure.destination == (address, 53)
    return failure


def provoke(caller: Inside, address: str, port: int, options: dict[tuple[int, int], int]) -> Failure:
    """Send a datagram that can't arrive, and return the error that the kernel queued for the socket."""
    family = client.family(address)
    v6 = family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IPV6_RECVERR) if v6 else (socket.IPPROTO_IP, IP_RECVERR)
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, option, 1)
        for (each_level, each_option), value in options.items():
            sock.setsockopt(each_level, each_option, value)
        sock.sendto(b"x", (address, port))
        poll = select.poll()
        poll.register(sock, 0)  # the error queue shows as POLLERR
        assert poll.poll(3000), "no ICMP error came"
        _, ancillary, _, destination = sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        return _failure(next(data for _, kind, data in ancillary if kind == option), destination)


def _failure(data: bytes, destination: tuple[str, int]) -> Failure:
    """Read a struct sock_extended_err and the offender's sockaddr behind it (ip(7))."""
    errno, origin, kind, code, _, info, _ = struct.unpack_from("=IBBBBII", data)
    address = data[16 + 8 : 16 + 24] if origin == ORIGIN_ICMP6 else data[16 + 4 : 16 + 8]
    return Failure(errno, origin, kind, code, info, str(ipaddress.ip_address(address)), destination[:2])
