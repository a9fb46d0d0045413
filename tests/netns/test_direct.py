"""Direct server return: clients outside call one node, and a backend on the other one answers them itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ebpfnet import abi
from ebpfnet.abi import FlowFlag
from ebpfnet.lab import agents, client
from ebpfnet.lab.cluster import Inside, Lab, down
from ebpfnet.maps import pins
from tests.netns import objects
from tests.netns.conftest import PATIENCE, Wait
from tests.netns.policies import SILENCE_S, block, labelled, policy
from tests.netns.test_pods import host

ANNOTATION = "ebpfnet.io/direct-server-return"
BALANCERS = ("100.64.1.77", "fd00:100:1::77")
PORTS, NODE_PORTS = {"tcp": 80, "udp": 53}, {"tcp": 30277, "udp": 30278}
LARGE = 3_000_000
RECVERR: dict[int, int] = {socket.AF_INET: 11, socket.AF_INET6: 25}  # include/uapi/linux/in.h, in6.h


class Direct:
    """A service whose backends are all on node-b; ``say`` writes its annotation, or takes it away."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.path = lab, lab.manifests / "direct.yaml"

    def say(self, value: str | None) -> None:
        ports = [("web", "TCP", 80, 8080), ("dns", "UDP", 53, 5353)]
        documents = objects.service("direct", 177, ports, [objects.FAR_WEB, objects.FAR_DNS],
                                    balancers=BALANCERS, node_ports=[*NODE_PORTS.values()],
                                    annotations={ANNOTATION: value} if value else None)  # fmt: skip
        for each in documents[1:]:
            pods = dict(zip((objects.FAR_WEB, objects.FAR_DNS), each["endpoints"], strict=True))
            more = {**each, "metadata": {**each["metadata"], "name": each["metadata"]["name"] + "-dns"}}
            each["ports"], more["ports"] = each["ports"][:1], each["ports"][1:]
            each["endpoints"], more["endpoints"] = [pods[objects.FAR_WEB]], [pods[objects.FAR_DNS]]
            documents.append(more)
        self.path.write_text(yaml.safe_dump_all(documents))

    def marks(self, node: str) -> int:
        """Return what a node makes of the node port."""
        with pins.opened(self.lab.pins(node)) as tables:
            raw = tables["services"].get(abi.Frontend(abi.V4_PREFIX + bytes(4), NODE_PORTS["tcp"], 6).pack())
        return abi.Service.unpack(raw).marks if raw else 0

    def flows(self, node: str) -> dict[abi.Tuple, abi.Flow]:
        """Return the entries of connections to services that a node knows."""
        with pins.opened(self.lab.pins(node)) as tables:
            found = {abi.Tuple.unpack(key): abi.Flow.unpack(value) for key, value in tables["flows"].items()}
        return {key: flow for key, flow in found.items() if flow.service}


@pytest.fixture(scope="module")
def pair(manifests: Path) -> Iterator[Lab]:
    """Return a lab of its own: what its nodes send is counted."""
    name = f"t{os.getpid()}-direct"
    try:
        yield Lab.up(name, manifests, timeout=PATIENCE)
    finally:
        down(name)


@pytest.fixture(scope="module")
def direct(pair: Lab, wait: Wait) -> Direct:
    found = Direct(pair)
    change(found, "true", wait)
    pair.sync()
    return found


def change(direct: Direct, value: str | None, wait: Wait) -> None:
    """Say something and wait until both nodes do it."""
    direct.say(value)
    both = abi.Mark.DIRECT | abi.Mark.TAKEN
    wanted = {"true": both, "false": abi.Mark.TAKEN, None: 0}[value]
    wait(lambda: all(direct.marks(node) & both == wanted for node in ("node-a", "node-b")))


def sent(place: Inside) -> int:
    """Return the bytes that a node sent to the network."""
    found = json.loads(place.exec("ip", "-j", "-s", "link", "show", "uplink").stdout)
    return int(found[0]["stats64"]["tx"]["bytes"])


def target(lab: Lab, what: str, protocol: str, family: int) -> tuple[str, int]:
    if what == "node port":
        return lab.node("node-a").of(family), NODE_PORTS[protocol]
    return BALANCERS[family == socket.AF_INET6], PORTS[protocol]


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("what", ["node port", "balancer"])
def test_the_backend_sees_the_client_and_answers_it(direct: Direct, what: str, protocol: str, family: int):
    """Only from the address that was called does an answer count; none is known to node-a."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, what, protocol, family)
    call = client.tcp if protocol == "tcp" else client.udp
    for _ in range(10):
        answer = call(outside, address, port, source=outside.of(family))
        backend = objects.FAR_WEB if protocol == "tcp" else objects.FAR_DNS
        assert (answer.pod, host(answer.client)) == (f"default/{backend}", outside.of(family))
    assert not [flow for flow in direct.flows("node-a").values() if FlowFlag.DIRECT not in flow.flags]
    there = {key for key, flow in direct.flows("node-b").items() if FlowFlag.REPLY not in flow.flags}
    assert {key for key in direct.flows("node-a") if key.protocol == 6} <= there


@pytest.mark.parametrize("what", ["node port", "balancer"])
def test_large_transfers_both_ways(direct: Direct, what: str, family: int):
    """More than the path takes in one packet, path MTU and all; answers do not pass the node that is called."""
    outside, node = direct.lab.outside(), direct.lab.node("node-a")
    address, port = target(direct.lab, what, "tcp", family)
    request = f"pad={LARGE} ".encode() + b"y" * 900_000 + b"\n"
    before = sent(node)
    answer = client.tcp(outside, address, port, request, 20, source=outside.of(family))
    assert (len(answer.pad), answer.bytes) == (LARGE, len(request))
    assert 900_000 < sent(node) - before < 900_000 + LARGE / 4


def test_a_datagram_that_does_not_fit_with_the_second_header(direct: Direct, family: int):
    """The client is told, and cuts it up; so the next one gets there in pieces."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, "node port", "udp", family)
    with client.connected(outside, socket.IPPROTO_UDP, address, port) as sock:
        sock.settimeout(0.5)
        for _ in range(6):
            try:
                sock.send(b"x" * 1450)
                answer = client.parse(sock.recv(65535))
                break
            except OSError:
                continue
        else:
            pytest.fail("no datagram arrived")
    assert (answer.bytes, answer.pod) == (1450, f"default/{objects.FAR_DNS}")


def test_fragments(direct: Direct, family: int):
    outside, (address, port) = direct.lab.outside(), target(direct.lab, "balancer", "udp", family)
    test_a_datagram_that_does_not_fit_with_the_second_header(direct, family)
    answer = client.udp(outside, address, port, b"y" * 100)
    assert answer.pod == f"default/{objects.FAR_DNS}"


def test_a_time_to_live_that_ends_at_the_backend_s_node(direct: Direct, family: int):
    """As traceroute sees it: the error comes from there to the client, and not by way of the node that was called."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, "node port", "udp", family)
    ipv6 = family == socket.AF_INET6
    level, hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
    with client.connected(outside, socket.IPPROTO_UDP, address, port) as sock:
        sock.setsockopt(level, hops, 2)
        sock.setsockopt(level, RECVERR[family], 1)
        sock.send(b"x")
        with pytest.raises(OSError, match="No route to host"):
            sock.recv(100)


class Load:
    """A client that opens connections without a pause, and keeps some that it talks on."""

    def __init__(self, place: Inside, address: str, port: int) -> None:
        self.place, self.address, self.port = place, address, port
        self.done, self.failed = 0, list[str]()
        self.stop = threading.Event()
        self.kept = [client.connected(place, socket.IPPROTO_TCP, address, port, 20) for _ in range(5)]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                client.tcp(self.place, self.address, self.port, timeout=20)
                client.udp(self.place, self.address, NODE_PORTS["udp"], timeout=20)
                self.done += 1
                if self.done % 10 == 0:
                    self._talk()
            except (OSError, ValueError) as error:
                self.failed.append(repr(error))

    def _talk(self) -> None:
        for sock in self.kept:
            sock.sendall(b"hello\n")
            line = b""
            while not line.endswith(b"\n"):
                if not (part := sock.recv(4000)):
                    raise ConnectionError("closed")
                line += part

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        for sock in self.kept:
            sock.close()


def test_the_annotation_comes_and_goes_under_load(direct: Direct, family: int, wait: Wait):
    """No connection fails; those that are open keep their way, and new ones follow the annotation."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, "node port", "tcp", family)
    load = Load(outside, address, port)
    try:
        for value in ("false", "true", "false", None, "false", "true"):
            done = load.done
            change(direct, value, wait)
            wait(lambda done=done: load.done > done + 20 or load.failed)  # type: ignore[misc]
            seen = host(client.tcp(outside, address, port, source=outside.of(family)).client)
            assert seen == (outside if value == "true" else direct.lab.node("node-a")).of(family)
    finally:
        load.end()
    assert not load.failed


@pytest.mark.parametrize("what", ["node port", "balancer"])
@pytest.mark.parametrize("protocol", PORTS)
def test_policies_of_the_backend_see_the_client(direct: Direct, what: str, protocol: str, family: int, wait: Wait):
    """One of the client's two addresses may; the node that is called is neither; connections that are open end, too."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, what, protocol, family)
    may, may_not = (each for each in outside.addresses if (":" in each) == (family == socket.AF_INET6))
    call = client.tcp if protocol == "tcp" else client.udp
    assert [host(call(outside, address, port, source=each).client) for each in (may, may_not)] == [may, may_not]
    with contextlib.ExitStack() as stack:
        keeps = stack.enter_context(opened(outside, protocol, address, port, may))
        loses = stack.enter_context(opened(outside, protocol, address, port, may_not))
        assert (goes_on(keeps), goes_on(loses)) == (True, True)
        stack.enter_context(only(direct, may, wait))
        assert (goes_on(keeps), goes_on(loses, SILENCE_S)) == (True, False)
        assert host(call(outside, address, port, source=may).client) == may
        with pytest.raises(TimeoutError):
            call(outside, address, port, timeout=SILENCE_S, source=may_not)
    assert host(call(outside, address, port, source=may_not).client) == may_not


@contextlib.contextmanager
def only(direct: Direct, address: str, wait: Wait) -> Iterator[None]:
    """Let the backends be called from one address alone."""
    rule = {"from": [{"ipBlock": {"cidr": block(address)}}]}
    path = direct.lab.manifests / "policy.yaml"
    policies = [policy(f"only-{app}", labelled(app=app), ingress=[rule]) for app in ("web", "dns")]
    path.write_text(yaml.safe_dump_all(policies))
    try:
        wait(lambda: enforced(direct.lab) == {"only-web", "only-dns"})
        yield
    finally:
        path.unlink()
        wait(lambda: not enforced(direct.lab))


def enforced(lab: Lab) -> set[str]:
    """Return the policies that the backends' node enforces."""
    told = (agents.ask(lab.places, "node-b", "policies") or {})["policies"]
    return {each["policy"].rpartition("/")[2] for each in told if each["enforced"]}


def opened(place: Inside, protocol: str, address: str, port: int, source: str) -> socket.socket:
    """Return a socket that is connected from one address."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = place.socket(client.family(address), kind)
    sock.bind((source, 0))
    sock.settimeout(PATIENCE)
    sock.connect((address, port))
    return sock


def goes_on(sock: socket.socket, timeout: float = PATIENCE) -> bool:
    """Say whether a line is answered."""
    sock.settimeout(timeout)
    try:
        sock.sendall(b"still?\n")
        return bool(sock.recv(4000))
    except TimeoutError:
        return False


def test_a_backend_that_is_gone(direct: Direct, family: int, wait: Wait):
    """Datagrams are cut over, and a connection ends with its next packet, as where the node stands in."""
    outside, (address, port) = direct.lab.outside(), target(direct.lab, "node port", "tcp", family)
    with client.connected(outside, socket.IPPROTO_TCP, address, port) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(4000)
        text = direct.path.read_text()
        documents = [each for each in yaml.safe_load_all(text) if each["kind"] == "Service"]
        direct.path.write_text(yaml.safe_dump_all(documents))
        try:
            wait(lambda: _is_reset(sock))
        finally:
            direct.path.write_text(text)
    wait(lambda: _answers(outside, address, port))


def _is_reset(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"hello\n")
        return not sock.recv(4000)
    except ConnectionError:
        return True


def _answers(place: Inside, address: str, port: int) -> bool:
    try:
        return bool(client.tcp(place, address, port).pod)
    except OSError:
        return False
