"""Session affinity: which backend a client comes back to, and for how long."""

import time

import pytest

from ebpfnet import abi
from tests import packets
from tests.packets import ALICE_IFINDEX, BOB_IFINDEX, BOB_MAC, CLIENT_PORT, POD_PORT, SERVICE_PORT, Ends
from tests.prog import serving
from tests.prog.loaded import Datapath
from tests.prog.serving import calls, ends_of

SET, TIMEOUT_S = 77, 8
MANY = 32
PORTS = range(CLIENT_PORT, CLIENT_PORT + 20)


def pods_of(ends: Ends) -> list[tuple[str, int]]:
    """Return so many backends that the same one twice is no accident."""
    prefix = "fd02::2:" if ends.ipv6 else "10.1.2."
    return [(f"{prefix}{number}", POD_PORT) for number in range(100, 100 + MANY)]


@pytest.fixture
def sticky(datapath: Datapath, ends: Ends) -> Datapath:
    offer(datapath, ends, pods_of(ends))
    return datapath


def offer(datapath: Datapath, ends: Ends, backends: list[tuple[str, int]], timeout_s: int = TIMEOUT_S) -> None:
    members = datapath.tables["members"]
    members.delete_batch([key for key, _ in members.items()])
    serving.put_set(datapath, SET, backends)
    for protocol in (6, 17, 132):
        service = abi.Service(SET, SET, affinity_s=timeout_s)
        serving.put_frontend(datapath, ends.service, service, SERVICE_PORT, protocol)


def key_of(ends: Ends) -> bytes:
    return abi.Client(SET, packets.raw(ends.alice)).pack()


def remembered(datapath: Datapath, ends: Ends) -> abi.Affinity:
    return abi.Affinity.unpack(datapath.tables["affinity"].get(key_of(ends)) or b"")


def make_older(datapath: Datapath, ends: Ends, seconds: float) -> None:
    found = remembered(datapath, ends)
    older = abi.Affinity(time.monotonic_ns() - int(seconds * 1e9), found.backend)
    datapath.tables["affinity"].put(key_of(ends), older.pack())


def goes_to(datapath: Datapath, ends: Ends, protocol: str = "tcp", sport: int = CLIENT_PORT) -> str:
    return ends_of(datapath.from_pod(calls(ends, protocol, sport=sport))).destination


@pytest.mark.parametrize("protocol", serving.TRANSPORTS)
def test_a_client_stays(sticky: Datapath, ends: Ends, protocol: str) -> None:
    assert len({goes_to(sticky, ends, protocol, port) for port in PORTS}) == 1


def test_without_affinity_it_does_not(sticky: Datapath, ends: Ends) -> None:
    offer(sticky, ends, pods_of(ends), timeout_s=0)
    assert len({goes_to(sticky, ends, "tcp", port) for port in PORTS}) > 1
    assert not list(sticky.tables["affinity"].items())


def test_the_ports_of_a_set_share_it(sticky: Datapath, ends: Ends) -> None:
    """A ClusterIP, the NodePort and the load balancer's address of one service port lead to the same backend."""
    other = abi.Service(SET, SET, affinity_s=TIMEOUT_S)
    serving.put_frontend(sticky, ends.lonely, other, SERVICE_PORT, 6)
    assert ends_of(sticky.from_pod(calls(ends, "tcp", to=ends.lonely))).destination == goes_to(sticky, ends)


def test_another_client_chooses_for_itself(sticky: Datapath, ends: Ends) -> None:
    goes_to(sticky, ends)
    sent = packets.ethernet(BOB_MAC) / packets.ip(ends.bob, ends.service) / packets.tcp()
    sticky.from_pod(sent, BOB_IFINDEX)
    clients = {abi.Client.unpack(key).address for key, _ in sticky.tables["affinity"].items()}
    assert clients == {packets.raw(ends.alice), packets.raw(ends.bob)}


def test_it_is_over_after_the_timeout(sticky: Datapath, ends: Ends) -> None:
    seen = set()
    for port in PORTS:
        seen.add(goes_to(sticky, ends, "tcp", port))
        make_older(sticky, ends, TIMEOUT_S + 1)
    assert len(seen) > 1


@pytest.mark.parametrize("timeout_s", [TIMEOUT_S, 86_400])
def test_each_new_connection_begins_the_time_anew(sticky: Datapath, ends: Ends, timeout_s: int) -> None:
    offer(sticky, ends, pods_of(ends), timeout_s)
    seen = set()
    for port in PORTS:
        seen.add(goes_to(sticky, ends, "tcp", port))
        make_older(sticky, ends, TIMEOUT_S - 3)
        older = remembered(sticky, ends).seen_ns
        seen.add(goes_to(sticky, ends, "tcp", port + 1000))
        assert remembered(sticky, ends).seen_ns - older > 1e9
    assert len(seen) == 1


def test_packets_of_a_connection_do_not_begin_it_anew(sticky: Datapath, ends: Ends) -> None:
    goes_to(sticky, ends)
    make_older(sticky, ends, TIMEOUT_S - 3)
    before = remembered(sticky, ends)
    goes_to(sticky, ends)
    assert remembered(sticky, ends) == before


def test_a_backend_that_is_gone_is_not_gone_back_to(sticky: Datapath, ends: Ends) -> None:
    first = goes_to(sticky, ends)
    rest = [backend for backend in pods_of(ends) if backend[0] != first]
    offer(sticky, ends, rest)
    second = goes_to(sticky, ends, sport=CLIENT_PORT + 1)
    assert second != first
    offer(sticky, ends, pods_of(ends))
    assert {goes_to(sticky, ends, "tcp", port) for port in PORTS[2:]} == {second}


def test_without_endpoints_nobody_stays(sticky: Datapath, ends: Ends) -> None:
    goes_to(sticky, ends)
    offer(sticky, ends, [])
    got = sticky.from_pod(calls(ends, "tcp", sport=CLIENT_PORT + 1))
    assert (got.outcome, got.reason) == (abi.Outcome.REJECT, abi.DropReason.NO_ENDPOINTS)


def test_the_client_of_a_hairpin_is_the_pod(datapath: Datapath, ends: Ends) -> None:
    offer(datapath, ends, [(ends.alice, POD_PORT)])
    got = [datapath.from_pod(calls(ends, "tcp", sport=port)) for port in PORTS]
    assert {result.ifindex for result in got} == {ALICE_IFINDEX}
    assert {ends_of(result)[:2] for result in got} == {(ends.service, ends.alice)}
    assert remembered(datapath, ends).backend == abi.Backend(packets.raw(ends.alice), POD_PORT)
    assert len(list(datapath.tables["affinity"].items())) == 1


def test_a_clock_tick_behind_another_processor_s_is_no_timeout(sticky: Datapath, ends: Ends) -> None:
    first = goes_to(sticky, ends)
    make_older(sticky, ends, -1)
    assert goes_to(sticky, ends, sport=CLIENT_PORT + 1) == first
