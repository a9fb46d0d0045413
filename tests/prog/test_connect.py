"""The shortcut at connect time: real sockets in a cgroup of their own, with the programs on it."""

from __future__ import annotations

import errno
import queue
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet import abi
from ebpfnet.abi import Mark, SetFlag
from ebpfnet.datapath import build, cgroup, load
from tests import cgroups, packets
from tests.packets import POD_PORT, SERVICE_PORT
from tests.prog.loaded import Datapath
from tests.prog.serving import mark, put_range, put_set
from tests.prog.sockets import (
    KINDS,
    PATIENCE_S,
    SET,
    Ground,
    Kind,
    admit,
    bpffs,
    cookie_of,
    listening,
    namespace_cookie,
)


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def shortcut(datapath: Datapath, kind: Kind, group: Path, tmp_path: Path) -> Iterator[Ground]:
    """The programs on a cgroup that this process is in, and a namespace that they serve."""
    with bpffs(tmp_path / "bpf") as pins, listening(kind) as listeners, cgroups.inside(group):
        cgroup.Shortcut(group, pins).attach(datapath.programs)
        admit(datapath, kind)
        yield Ground(datapath, kind, listeners, pins)


def untouched(ground: Ground, address: str = "", port: int = SERVICE_PORT) -> bool:
    """Tell whether a connection is left to the packets' path: which leads nowhere here."""
    with pytest.raises(OSError) as caught:
        ground.connect(address, port)
    return caught.value.errno == errno.ENETUNREACH


def test_a_connection_to_a_service_is_one_to_a_backend(shortcut: Ground) -> None:
    backend = shortcut.kind.backends[0]
    shortcut.serve([backend])
    with shortcut.connect() as client:
        assert shortcut.accepted() == backend
        known = shortcut.socket_of(client)
    asked = abi.Frontend(packets.raw(shortcut.kind.service), SERVICE_PORT, abi.Protocol.TCP)
    assert known == abi.Socket(SET, namespace_cookie(), asked, abi.Backend(packets.raw(backend), POD_PORT))


def test_the_peer_is_the_service(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    with shortcut.connect() as client:
        assert client.getpeername()[:2] == (shortcut.kind.spelled(shortcut.kind.service), SERVICE_PORT)


def test_the_peer_is_the_true_one_of_a_socket_that_went_elsewhere(shortcut: Ground) -> None:
    there, elsewhere = shortcut.kind.backends
    with shortcut.connect(there, POD_PORT) as client:
        asked = abi.Frontend(packets.raw(shortcut.kind.service), SERVICE_PORT, abi.Protocol.TCP)
        former = abi.Socket(SET, 1, asked, abi.Backend(packets.raw(elsewhere), POD_PORT))
        shortcut.datapath.tables["sockets"].put(cookie_of(client), former.pack())
        assert client.getpeername()[:2] == (shortcut.kind.spelled(there), POD_PORT)


def test_what_is_no_service_is_let_be(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends[:1])
    with shortcut.connect(shortcut.kind.backends[1], POD_PORT) as client:
        assert shortcut.accepted() == shortcut.kind.backends[1]
        assert shortcut.socket_of(client) is None


def test_connections_spread(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    reached = Counter(shortcut.reached() for _ in range(60))
    assert min(reached[backend] for backend in shortcut.kind.backends) >= 10


def test_connections_spread_over_a_consistent_set(shortcut: Ground) -> None:
    put_set(shortcut.datapath, SET, [(each, POD_PORT) for each in shortcut.kind.backends], SetFlag.CONSISTENT)
    shortcut.put(abi.Service(SET, SET))
    reached = Counter(shortcut.reached() for _ in range(60))
    assert min(reached[backend] for backend in shortcut.kind.backends) >= 10


def test_a_client_stays_with_its_backend(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends, affinity_s=3600)
    first = shortcut.reached()
    assert {shortcut.reached() for _ in range(20)} == {first}
    key = abi.Client(SET, packets.raw(shortcut.kind.client))
    value = shortcut.datapath.tables["affinity"].get(key.pack())
    assert value is not None
    assert abi.Affinity.unpack(value).backend == abi.Backend(packets.raw(first), POD_PORT)


def test_a_client_joins_the_backend_that_its_packets_got(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends, affinity_s=3600)
    key = abi.Client(SET, packets.raw(shortcut.kind.client))
    for backend in shortcut.kind.backends:
        with shortcut.connect():  # the clock of the datapath, to begin with
            shortcut.accepted()
        last = abi.Affinity.unpack(shortcut.datapath.tables["affinity"].get(key.pack()) or b"")
        joined = abi.Affinity(last.seen_ns, abi.Backend(packets.raw(backend), POD_PORT))
        shortcut.datapath.tables["affinity"].put(key.pack(), joined.pack())
        assert shortcut.reached() == backend


def test_a_client_leaves_a_backend_that_goes(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends, affinity_s=3600)
    gone = shortcut.reached()
    (stays,) = set(shortcut.kind.backends) - {gone}
    member = abi.Member(SET, abi.Backend(packets.raw(gone), POD_PORT))
    shortcut.datapath.tables["members"].delete(member.pack())
    put_set(shortcut.datapath, SET, [(stays, POD_PORT)])
    assert shortcut.reached() == stays


@pytest.mark.parametrize("flags", [SetFlag(0), SetFlag.ELSEWHERE], ids=["nowhere", "elsewhere"])
def test_without_a_backend_the_packets_path_refuses(shortcut: Ground, flags: SetFlag) -> None:
    put_set(shortcut.datapath, SET, [], flags)
    shortcut.put(abi.Service(SET, SET))
    assert untouched(shortcut)


def test_an_undefined_port_is_refused_by_the_packets_path(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    mark(shortcut.datapath, shortcut.kind.service, Mark.CLUSTER_IP)
    assert untouched(shortcut, port=SERVICE_PORT + 1)


def test_source_ranges_hold(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends, ranges=77)
    assert untouched(shortcut)
    put_range(shortcut.datapath, 77, f"{shortcut.kind.client}/{128 if shortcut.kind.ipv6 else 32}")
    assert shortcut.reached() in shortcut.kind.backends


def test_a_pod_that_reaches_itself_is_left_to_the_packets_path(shortcut: Ground) -> None:
    shortcut.serve([shortcut.kind.client])
    assert untouched(shortcut)


def test_a_node_port_at_an_address_of_the_node(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    shortcut.put(abi.Service(SET, SET), shortcut.kind.unspecified, 30080)
    address = "fd99::1" if shortcut.kind.ipv6 else "192.0.2.1"
    assert untouched(shortcut, address, 30080)
    mark(shortcut.datapath, address, Mark.OWN | Mark.NODEPORTS)
    with shortcut.connect(address, 30080) as client:
        assert shortcut.accepted() in shortcut.kind.backends
        assert client.getpeername()[:2] == (shortcut.kind.spelled(address), 30080)


def test_the_unspecified_address_is_no_node_port(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    shortcut.put(abi.Service(SET, SET), shortcut.kind.unspecified, 30080)
    with pytest.raises(ConnectionRefusedError):  # by this namespace, where nobody listens there
        shortcut.connect(shortcut.kind.unspecified, 30080)


def test_datagrams_are_let_be(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    udp = abi.Frontend(packets.raw(shortcut.kind.service), SERVICE_PORT, abi.Protocol.UDP)
    shortcut.datapath.tables["services"].put(udp.pack(), abi.Service(SET, SET).pack())
    with shortcut.client(socket.SOCK_DGRAM) as client, pytest.raises(OSError) as caught:
        client.connect((shortcut.kind.spelled(shortcut.kind.service), SERVICE_PORT))
    assert caught.value.errno == errno.ENETUNREACH


def test_a_namespace_that_is_not_ours_is_let_be_and_asked_who_it_is(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    key = abi.Netns(namespace_cookie(), int(shortcut.kind.ipv6))
    shortcut.datapath.tables["namespaces"].delete(key.pack())
    assert untouched(shortcut)
    ((_, value),) = shortcut.datapath.tables["sockets"].items()
    known = abi.Socket.unpack(value)
    assert (known.namespace, known.given) == (key.cookie, abi.Backend(bytes(16), 0))


def connections(ground: Ground, backend: str) -> int:
    """Return how many connections to a backend were counted."""
    member = abi.Member(SET, abi.Backend(packets.raw(backend), POD_PORT))
    value, size = ground.datapath.tables["usage"].get(member.pack()) or b"", abi.Usage.size()
    return sum(abi.Usage.unpack(value[at : at + size]).connections for at in range(0, len(value), size))


def test_the_nodes_own_processes(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends, affinity_s=3600)
    cgroup.admit_own_namespace(shortcut.datapath.tables["namespaces"])
    first = shortcut.reached()
    before = connections(shortcut, first)
    assert {shortcut.reached() for _ in range(20)} == {first}
    assert connections(shortcut, first) == before + 20


def test_a_socket_of_another_cgroup_is_let_be(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    with cgroups.made() as other, cgroups.inside(other):
        assert untouched(shortcut)


@pytest.mark.parametrize("kind", [KINDS["v4"]], ids=["v4"])
def test_programs_are_replaced_under_connections(shortcut: Ground, group: Path, compiled: build.Object) -> None:
    shortcut.serve(shortcut.kind.backends)
    reached: queue.SimpleQueue[str] = queue.SimpleQueue()
    enough = threading.Event()

    def connect() -> None:
        while not enough.is_set() and threading.main_thread().is_alive():
            reached.put(shortcut.reached())

    client = threading.Thread(target=connect)  # in this thread's namespace
    client.start()
    before = cgroup.cgroup_of(shortcut.pins / "link_connect4")
    for _ in range(10):
        fresh = load.load(compiled, shortcut.datapath.tables)
        cgroup.Shortcut(group, shortcut.pins).attach(fresh)
        for program in fresh.values():
            program.close()
        for _ in range(reached.qsize() + 5):  # some of them by the new programs alone
            reached.get(timeout=PATIENCE_S)
    enough.set()
    client.join()
    assert cgroup.cgroup_of(shortcut.pins / "link_connect4") == before == group.stat().st_ino


@pytest.mark.parametrize("kind", [KINDS["v4"]], ids=["v4"])
def test_without_the_option_it_goes_and_connections_stay(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    with shortcut.connect() as client:
        assert cgroup.serve("", shortcut.datapath.programs, shortcut.datapath.tables, shortcut.pins) is None
        assert untouched(shortcut)
        client.sendall(b"still there")
        assert client.getpeername()[0] in shortcut.kind.backends


@pytest.mark.parametrize("kind", [KINDS["v4"]], ids=["v4"])
def test_another_cgroup_takes_its_place(shortcut: Ground) -> None:
    shortcut.serve(shortcut.kind.backends)
    with cgroups.made() as other:
        found = cgroup.serve(str(other), shortcut.datapath.programs, shortcut.datapath.tables, shortcut.pins)
        assert found is not None
        assert found.state() == str(other)
        assert untouched(shortcut)
        with cgroups.inside(other):
            assert shortcut.reached() in shortcut.kind.backends
    assert "NOT attached" in found.state()


@pytest.mark.parametrize("kind", [KINDS["v4"]], ids=["v4"])
def test_cleanup_takes_it_off(shortcut: Ground, tmp_path: Path) -> None:
    shortcut.serve(shortcut.kind.backends)
    command = [sys.executable, "-m", "ebpfnet", "cleanup", "--pins", str(shortcut.pins), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"removed {shortcut.pins / pin}" in done.stdout for pin in cgroup.PINS)
    assert untouched(shortcut)


def test_a_wrong_cgroup_is_named(tmp_path: Path) -> None:
    with pytest.raises(cgroup.WrongCgroup, match="no such cgroup"):
        cgroup.find(str(tmp_path / "none"))
    with pytest.raises(cgroup.WrongCgroup, match="no cgroup of version 2"):
        cgroup.find(str(tmp_path))
