"""A lab, for Python: bring it up, work inside its pods and nodes, take it down."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ebpfnet.exits import EbpfnetError, NotRunning
from ebpfnet.lab import agents, build, folder, namespace, processes, state, topology, wires
from ebpfnet.lab.state import UPLINK_MTU, Options, Places, State
from ebpfnet.lab.topology import NodePlan
from ebpfnet.model.facts import Problem

T = TypeVar("T")
Say = Callable[[str], None]

TIMEOUT = 60.0

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def silent(_text: str) -> None:
    """Say nothing."""


class LabMismatchError(EbpfnetError):
    """The lab is up, but was asked for differently."""

    exit_code = 2


class NotInLabError(NotRunning):
    """The lab has no such pod or node."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Something that has addresses."""

    name: str
    addresses: tuple[str, ...]

    @property
    def v4(self) -> str:
        """The first IPv4 address."""
        return next(address for address in self.addresses if ":" not in address)

    @property
    def v6(self) -> str:
        """The first IPv6 address."""
        return next(address for address in self.addresses if ":" in address)

    def of(self, family: int) -> str:
        """Return the first address of a socket family."""
        return self.v6 if family == socket.AF_INET6 else self.v4


@dataclass(frozen=True, slots=True)
class Inside(Addresses):
    """A place to work in: the network namespace of a pod or of a node, or outside."""

    netns: str

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command here."""
        return processes.enter(self.netns, command)

    def exec(self, *command: str, timeout: float | None = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command here; its output is captured as text."""
        return subprocess.run(self.command(command), capture_output=True, text=True, timeout=timeout, check=False)

    def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function here, in a thread of its own, and return what it returns."""
        return namespace.run(self.netns, lambda: function(*arguments))

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket that belongs here, to use anywhere in this process."""
        return self.run(socket.socket, family, kind, protocol)


class Lab:
    """A lab that is up. As a context manager it is taken down at the end."""

    def __init__(self, name: str) -> None:
        self.places = Places(name)
        self._state = state.load(name)
        self.left_out: tuple[Problem, ...] = ()
        """The pods that the last ``up`` or ``sync`` gave no wire, though they should have one."""

    @classmethod
    def up(
        cls,
        name: str,
        manifests: Path | None = None,
        *,
        agents: bool | None = None,
        uplink_mtu: int | None = None,
        agent_arguments: Sequence[str] = (),
        timeout: float = TIMEOUT,
        say: Say = silent,
    ) -> Self:
        """Bring a lab up, or make one that is there follow the manifests; a new lab that fails leaves nothing.

        ``manifests`` is a file or folder, copied into the lab; None means the packaged demo for a new lab, and the
        lab's own folder for one that is there, in whatever state: what is half made is made again, dead agents are
        started. ``agents=False`` leaves pods with plain kernel routing.
        """
        places = Places(topology.empty(name).lab)
        deadline = time.monotonic() + timeout
        with state.locked(places):
            old = _existing(places)
            if old is not None:
                _check_owner(name, old.options.owner)
            if old is None:
                options = Options(agents is not False, uplink_mtu or UPLINK_MTU, tuple(agent_arguments))
                left_out = _build(places, options, manifests or folder.DEMO, deadline, say)
            else:
                options = _options(name, old, agents=agents, uplink_mtu=uplink_mtu, arguments=agent_arguments)
                left_out = _follow(places, old, options, manifests, deadline, say)
            found = cls(name)
            found.left_out = left_out
            return found

    @classmethod
    def up_for_me(cls, name: str, manifests: Path, *, timeout: float = TIMEOUT, say: Say = silent) -> Self:
        """Bring up a lab that belongs to this process; the lab of another one is refused unless its owner is dead."""
        places = Places(topology.empty(name).lab)
        me = processes.this()
        with state.locked(places):
            if (old := _existing(places)) is not None:
                _check_owner(name, old.options.owner)
                if old.options.owner is None:
                    text = f"lab {name!r} is there, and is not a demo's: it is left alone"
                    raise LabMismatchError(f"{text}. Give the demo another --name, or `ebpfnet lab down --name {name}`")
                say("a lab was left over from a demo that was interrupted; it goes first")
            options = Options(owner=state.Owner(me.pid, me.start_time))
            _build(places, options, manifests, time.monotonic() + timeout, say)
            return cls(name)

    def sync(self, timeout: float = TIMEOUT, say: Say = silent) -> None:
        """Give wires and echo servers to what was added to the lab's manifests, and take those of what is gone.

        Agents that are dead are started again, and what an earlier sync left half made is made again.
        """
        with state.locked(self.places):
            old = state.load(self.places.name)
            self.left_out = _follow(self.places, old, old.options, None, time.monotonic() + timeout, say)
            self._state = state.load(self.places.name)

    def down(self) -> None:
        """Take the lab down."""
        down(self.places.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def is_there(self) -> bool:
        """Tell whether nobody has taken it down."""
        return _existing(self.places) is not None

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.places.name

    @property
    def plan(self) -> topology.Plan:
        """What the lab consists of."""
        return self._state.plan

    @property
    def options(self) -> Options:
        """How the lab was asked for."""
        return self._state.options

    @property
    def manifests(self) -> Path:
        """The folder of manifests that the agents follow."""
        return self.places.manifests

    def pod(self, full_name: str) -> Inside:
        """Return the pod NAMESPACE/NAME (or NAME, in ``default``)."""
        found = self.plan.pod(full_name)
        if found is None:
            known = ", ".join(pod.full_name for pod in self.plan.pods) or "none"
            raise NotInLabError(f"lab {self.name!r} has no pod {full_name!r} (pods: {known})")
        return Inside(found.full_name, found.addresses, found.netns)

    def node(self, name: str) -> Inside:
        """Return the node of that name."""
        found = self._node(name)
        return Inside(found.name, found.addresses, found.netns)

    def outside(self) -> Inside:
        """Return the client outside of the cluster; it is the nodes' default gateway, and knows no way to pods."""
        found = self.plan.outside
        if found is None:  # a lab that an older version brought up
            raise NotInLabError(f"lab {self.name!r} has no outside; `ebpfnet lab sync` makes one")
        return Inside("outside", found.addresses, found.netns)

    def service(self, full_name: str) -> Addresses:
        """Return the cluster IPs of the service NAMESPACE/NAME (or NAME, in ``default``), as the manifests now say."""
        wanted = full_name if "/" in full_name else f"default/{full_name}"
        found = folder.cluster_ips(self.manifests)
        if wanted not in found:
            raise NotInLabError(f"lab {self.name!r} has no service {wanted!r} (services: {', '.join(sorted(found))})")
        return Addresses(wanted, found[wanted])

    def pins(self, node: str) -> Path:
        """Return the folder of a node's pinned programs and maps."""
        return self.places.pins(self._node(node).name)

    def agent_status(self, node: str) -> dict[str, Any] | None:
        """Return what a node's agent says about itself, None when it does not answer."""
        return agents.ask(self.places, self._node(node).name, "status")

    def agent_process(self, node: str) -> processes.Process | None:
        """Return the process of a node's agent, None when there is none (any more)."""
        found = processes.recorded(agents.record(self.places, self._node(node).name))
        return found if found is not None and found.alive() else None

    def kill_agent(self, node: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a node's agent and wait until it is gone."""
        process = self.agent_process(node)
        if process is not None:
            process.signal(number)
            processes.wait_gone([process], 10.0)

    def start_agent(self, node: str) -> None:
        """Start a node's agent again; does not wait for it."""
        if self.agent_process(node) is None:
            agents.start(self.places, self._node(node), self.options)

    def restart_agent(self, node: str, timeout: float = TIMEOUT) -> None:
        """Stop a node's agent, start it again, and wait until it is ready."""
        agents.stop(self.places, [self._node(node).name])
        self.start_agent(node)
        self.wait_synced(timeout)

    def wait_synced(self, timeout: float = TIMEOUT) -> None:
        """Wait until every agent has written everything it knows."""
        agents.wait_ready(self.places, self.plan, time.monotonic() + timeout, silent)

    def _node(self, name: str) -> NodePlan:
        found = self.plan.node(name)
        if found is None:
            known = ", ".join(node.name for node in self.plan.nodes)
            raise NotInLabError(f"lab {self.name!r} has no node {name!r} (nodes: {known})")
        return found


def down(name: str) -> bool:
    """Remove every trace of a lab, however far it got; returns whether there was any."""
    places = Places(topology.empty(name).lab)
    if not places.root.exists():
        return False
    with state.locked(places), _uninterrupted():
        _remove(places)
    return True


def _remove(places: Places) -> None:
    _dismantle(places)
    places.remove()


def _dismantle(places: Places) -> None:
    processes.stop(processes.all_recorded(places.processes))
    found = _load(places.name)
    if found is not None:
        for pod in found.plan.pods:
            wires.remove_pod(pod)
        for node in found.plan.nodes:
            wires.remove_node(node)
        if found.plan.outside is not None:
            wires.remove_node(found.plan.outside)
        wires.remove_uplink(found.plan)


Problems = tuple[Problem, ...]


def _build(places: Places, options: Options, manifests: Path, deadline: float, say: Say) -> Problems:
    """Build a lab from nothing; remains of one that was interrupted go first."""
    try:
        wanted = folder.read(places.name, manifests)
        _remove_contents(places)
        places.create()
        folder.copy(manifests, places.manifests)
        for warning in wanted.warnings:
            say(f"warning: {warning}")
        build.move(places, options, topology.empty(places.name), wanted.plan, deadline, say)
        return wanted.left_out
    except BaseException:
        try:
            say("taking the lab down again")
        finally:  # whoever listened may be gone
            with _uninterrupted():
                _remove(places)
        raise


def _remove_contents(places: Places) -> None:
    """Remove what an interrupted lab left, but keep the folder that the lock is on."""
    _dismantle(places)
    places.clear()


def _follow(
    places: Places, old: State, options: Options, manifests: Path | None, deadline: float, say: Say
) -> Problems:
    """Make a lab what its manifests, or others that take their place, say. They are never lost."""
    wanted = folder.read(places.name, manifests or places.manifests, old.plan if old.settled else old.sure)
    if manifests is not None:
        if kept := folder.keep(places.manifests, manifests):
            say(f"the manifests that were there are kept in {kept}")
        folder.copy(manifests, places.manifests)
    for warning in wanted.warnings:
        say(f"warning: {warning}")
    if not old.settled:
        say("a change did not come to its end; what it left half made is made again")
    have = old.plan if old.settled else build.retreat(places, old)
    build.move(places, options, have, wanted.plan, deadline, say)
    return wanted.left_out


def _existing(places: Places) -> State | None:
    """Return the state of a lab that is there, None for a new one; one that can't be read is left alone."""
    return state.load(places.name) if (places.root / "lab.json").exists() else None


def _check_owner(name: str, owner: state.Owner | None) -> None:
    if owner is not None and owner.alive():
        raise state.LabBusyError(f"lab {name!r} belongs to a demo that is running (pid {owner.pid})")


def _load(name: str) -> State | None:
    try:
        return state.load(name)
    except state.NoSuchLabError:
        return None


def _options(
    name: str, old: State, *, agents: bool | None, uplink_mtu: int | None, arguments: Sequence[str]
) -> Options:
    """Return how a lab is to be, that was asked for before: as long as any of it stands, it can't be otherwise."""
    if old.settled or (old.sure and old.sure.nodes):
        _check_same(name, old.options, agents=agents, uplink_mtu=uplink_mtu)
        return dataclasses.replace(old.options, owner=None)
    with_agents = old.options.agents if agents is None else agents
    return Options(with_agents, uplink_mtu or old.options.uplink_mtu, tuple(arguments) or old.options.agent_arguments)


def _check_same(name: str, options: Options, *, agents: bool | None, uplink_mtu: int | None) -> None:
    if uplink_mtu not in (None, options.uplink_mtu) or agents not in (None, options.agents):
        how = f"uplink MTU {options.uplink_mtu} and {'' if options.agents else 'no '}agents"
        raise LabMismatchError(f"lab {name!r} is up with {how}; take it down first")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and friends until the clean-up is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
