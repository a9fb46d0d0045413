"""The node agent: the only place where all rooms meet.

One lock owns model and maps. A change is applied by the thread that brings it, at once; the main thread only does what
has a time: retries, sweeps. Stopping the agent stops nothing in the kernel: programs and maps are pinned, and the next
agent takes them over.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebpfnet import __version__, abi, adopt, clock, origin, policing, status
from ebpfnet.alone import alone
from ebpfnet.config import SIZED_BY, AgentConfig
from ebpfnet.datapath import attach, build, capabilities, cgroup, interfaces, load, loopback
from ebpfnet.datapath.attachments import Attachments
from ebpfnet.datapath.interfaces import Chosen, Interface
from ebpfnet.exits import EbpfnetError, MissingFeature
from ebpfnet.hosting import Hosting
from ebpfnet.maps import pins
from ebpfnet.maps.kernel import KernelTable
from ebpfnet.maps.table import NotMade, TableError
from ebpfnet.model.facts import Accepted, Change, Kind, Problem, Ref, Refused
from ebpfnet.operate.events import Recorder
from ebpfnet.operate.snapshot import Attached
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.reconcile.sweep import Wires, sweep
from ebpfnet.telemetry import Counted, Telemetry
from ebpfnet.watch.source import Source

if TYPE_CHECKING:  # 30 ms of import that an agent of manifests does not need
    from ebpfnet.watch.kube.sender import Sender

log = logging.getLogger(__name__)

BTF = Path("/sys/kernel/btf/vmlinux")
ON_WIRE, ON_WIRE_BESIDE = abi.PROGRAMS[0:2], abi.PROGRAMS[5:7]
ON_UPLINK, ON_UPLINK_BESIDE = abi.PROGRAMS[2:4], (abi.PROGRAMS[2], abi.PROGRAMS[7])
ON_LOOPBACK = abi.PROGRAMS[4:5]
BREATH_S = 0.0005
# Sweeps for services' sake: how far apart, and how much of the time until they are that far apart.
SWEEP_PAUSE_S, SWEEP_PAUSE_MAX_S, SWEEP_SHARE = 1.0, 3.0, 0.01
SWITCH_INTERVAL_S = 0.0002  # a busy thread hands over quickly: 5 ms by default would be the latency of an event


class Agent:
    """One node. ``run`` blocks until SIGTERM or SIGINT."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self._node = Ref(Kind.NODE, "", config.node_name)
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._wiring = threading.Lock()  # one thread at a time says what the interfaces are
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # put() may be called from a signal handler
        self._started, self._began = time.time(), time.monotonic()
        self._last_change = 0.0
        self._chosen = Chosen(config.pod_interfaces)
        self._interfaces: list[Interface] = []
        self._programs: dict[str, load.Program] = {}
        self._attachments: Attachments
        self._unserved: dict[Ref, str] = {}
        self._tables: dict[str, KernelTable] = {}
        self._reconciler: Reconciler
        self._source: Source
        self._failure: BaseException | None = None
        self._sweep_planned = False  # the main thread knows already that flows may be astray
        self._told = 0
        self._known_problems: dict[str, Problem] = {}
        self._sender: Sender | None = None
        self._telemetry: Telemetry
        uplinks, wake = partial(interfaces.find, config.uplink), partial(self._wake.put, None)
        self._hosting = Hosting(config.host, config.node_name, uplinks, self._lock, wake)
        self._shortcut: cgroup.Shortcut | None = None

    def run(self) -> None:
        """Bring the node under control and keep it so; raises ``EbpfnetError`` when it can't."""
        capabilities.check()
        pins.check_place(self.config.pins)
        with alone(self.config.run, self.config.pins):
            self._prepare()
            told = {"status": self.status, **policing.answers(self._lock, self._reconciler, self.config.graceful)}
            threads = [
                self._thread("watch", self._source.run, self._on_changes, self.stop),
                self._thread("links", interfaces.follow, self._on_interfaces, self.stop, self._chosen),
                self._thread("filters", self._attachments.keep, self._on_attachments, self.stop),
                self._thread("status", status.serve, self.config.run, told, self.stop),
                self._thread("host", self._hosting.follow, self.stop, self.config.sweep_interval),
            ]
            if self._sender is not None:
                threads.append(self._thread("events", self._sender.run, self.stop))
            try:
                self._telemetry.listen()
                self._hosting.serve_health(self._telemetry.health.healthy)
                self._loop()
            finally:
                self.stop.set()
                self._telemetry.close()
                self._hosting.close()
                for thread in threads:
                    thread.join(timeout=5)
        if self._failure:
            raise self._failure

    def _prepare(self) -> None:
        """Check, compile, load, pin and take over what is attached, before anything is changed in the tables."""
        if not BTF.exists():
            raise MissingFeature(f"this kernel has no BTF ({BTF} is missing); build it with CONFIG_DEBUG_INFO_BTF")
        self._source, self._sender = origin.of(self.config)
        uplinks = interfaces.find(self.config.uplink)
        compiled = build.compiled(self.config.cache)
        self._tables = self._make_tables()
        self._reconciler = Reconciler(self._tables, self.config.node_name, graceful=self.config.graceful)
        self._reconciler.departures.reset(self._tables)
        recorder = Recorder(self._sender.post, self.config.node_name) if self._sender else None
        self._telemetry = Telemetry(
            self.config.telemetry, self._tables, self._counted, lambda: self._source.stats, recorder
        )
        self._programs = load.load(compiled, self._tables, _needed(self.config))
        try:
            for program in self._programs.values():
                program.pin(self.config.pins / program.name)
        except OSError as error:
            raise pins.not_pinned(self.config.pins, error) from error
        self._shortcut = cgroup.serve(self.config.socket_shortcut, self._programs, self._tables, self.config.pins)
        self._chosen = Chosen(self.config.pod_interfaces, never=tuple(uplinks))
        loopback.admit(self.config.run)
        find_uplinks, on_uplink = partial(interfaces.find, self.config.uplink), _on_uplink(self.config)
        self._attachments = Attachments(self._programs, find_uplinks, on_uplink, {loopback.IFINDEX: ON_LOOPBACK})
        self._attachments.serve_uplinks()
        # Before the first sync: what is not known by then would lose its entries and its flows.
        self._hosting.begin(self._reconciler.set_host)
        self._on_interfaces(interfaces.pod_interfaces(self._chosen))
        if self.config.pod_interfaces:
            log.info("pods behind --pod-interfaces: their network policies are enforced by the plugin that wired them")
        for name in attach.remove_elsewhere(self._attachments.wanted, ON_WIRE_BESIDE):
            log.info("removed from %s, which no --pod-interfaces names any more", name)
        for name in abi.PROGRAMS:  # those of a flag that is gone: by now they are nowhere
            if name not in self._programs:
                (self.config.pins / name).unlink(missing_ok=True)
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def _make_tables(self) -> dict[str, KernelTable]:
        try:
            return pins.create_or_open_all(self.config.pins, self.config.specs)
        except NotMade as error:
            flag = SIZED_BY.get(error.spec.name)
            hint = f"; give a smaller {flag}" if flag else ""
            raise EbpfnetError(f"{error.strerror}{hint}") from error

    def _thread(self, name: str, work: Any, *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                log.exception("thread %s ended", name)
                self._failure = error
                self.stop.set()
                self._wake.put(None)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _on_changes(self, changes: list[Change], read_at: float = 0.0) -> None:
        began = self._telemetry.begin()
        with self._lock:
            was_synced = self._reconciler.synced
            turns, wires = self._reconciler.turns, self._reconciler.wires
            self._hosting.learn(changes)
            self._reconciler.apply(changes)
            self._announce()
            self._last_change = time.time()
            late, behind = self._reconciler.late, self._reconciler.policies.behind()
            turned = self._reconciler.turns != turns and not self._sweep_planned
            awaited = turned or self._reconciler.next_retry is not None or self._reconciler.wires is not wires
            node = self._reconciler.cluster.nodes.get(self._node)
            self._source.want(self._reconciler.cluster.needed)
            self._log_problems()
        self._telemetry.health.node_eligible(node is None or not node.leaving)
        self._telemetry.applied(changes, began, read_at, late=late, behind=behind)
        if not was_synced and self._reconciler.synced:
            gc.collect()
            gc.freeze()  # what lives now lives long: the collector need not look at it again
            if self.config.adopt:
                self._thread("adopt", adopt.run, self._tables)
            log.info("in sync after %.2f s", time.monotonic() - self._began)
        if awaited:  # most changes are none of the main thread's business
            self._wake.put(None)

    def _announce(self) -> None:
        """Have flows heed what left at their next packet; what can't be told, the next sweep finds."""
        try:
            self._reconciler.departures.announce(self._tables, self._reconciler.fate)
        except TableError as error:
            log.warning("announce what left: %s", error)

    def _log_problems(self) -> None:
        if self._told == (told := self._reconciler.told + self._hosting.told):
            return
        self._told = told
        now = {str(each.problem): each.problem for each in self._refused()}
        for text in sorted(now.keys() - self._known_problems.keys()):
            log.warning("%s", text)
            self._telemetry.tell(now[text])
        for text in sorted(self._known_problems.keys() - now.keys()):
            log.info("settled: %s", text)
        self._known_problems = now

    def _refused(self) -> list[Refused]:
        return [*self._reconciler.refusals, *(Refused(each, partial=True) for each in self._hosting.problems)]

    def _on_interfaces(self, found: list[Interface]) -> None:
        with self._wiring:
            self._wire_up(found)

    def _on_attachments(self) -> None:
        with self._wiring:  # an older list must not come after a newer one
            self._wire_up(self._interfaces)

    def _wire_up(self, found: list[Interface]) -> None:
        """Attach to new wires first, then let their pods into the tables."""
        live = {interface.wire.ifindex for interface in found}
        self._attachments.forget({each.wire.ifindex for each in self._interfaces} - live)
        served = [each for each in found if self._attachments.serve(each.wire.ifindex, _programs(each))]
        named = {each.pod: each.wire for each in served if each.pod}
        behind = {address: each.wire for each in served for address in each.addresses}
        with self._lock:
            self._interfaces = found
            self._reconciler.set_wires(named, behind)
            self._name_unserved()
            self._log_problems()
            self._last_change = time.time()
        self._wake.put(None)

    def _name_unserved(self) -> None:
        names = {loopback.IFINDEX: "lo"} | {each.wire.ifindex: each.name for each in self._interfaces}
        now = {
            Ref(Kind.INTERFACE, "", names.get(ifindex, str(ifindex))): text
            for ifindex, text in self._attachments.failed.items()
        }
        if now != self._unserved:
            gone = [Accepted(ref) for ref in self._unserved.keys() - now.keys()]
            self._reconciler.apply([*gone, *(Refused(Problem(ref, "programs", text)) for ref, text in now.items())])
            self._unserved = now

    def _loop(self) -> None:
        swept: Wires = None
        turns = 0
        next_sweep, paused = time.monotonic() + self.config.sweep_interval, 0.0
        while not self.stop.is_set():
            with self._lock:
                due = self._reconciler.next_retry
                self._sweep_planned = self._reconciler.turns != turns
                sweep_at = paused if self._sweep_planned else next_sweep
            wake_at = min(sweep_at, next_sweep, due if due is not None else next_sweep)
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=max(0.0, wake_at - time.monotonic()))
                while True:
                    self._wake.get_nowait()
            if self.stop.is_set():
                return
            self._retry()
            with self._lock:
                self._log_problems()
                wires, late, turned = self._reconciler.wires, self._reconciler.late, self._reconciler.turns
                behind = self._reconciler.policies.behind()
            self._telemetry.settled(late=late, behind=behind)
            now = time.monotonic()
            if wires != swept or now >= (paused if turned != turns else next_sweep):
                self._sweep()
                swept, turns = wires, turned
                done = time.monotonic()
                next_sweep = done + self.config.sweep_interval
                paused = done + min(SWEEP_PAUSE_MAX_S, max(SWEEP_PAUSE_S, (done - now) / SWEEP_SHARE))

    def _retry(self) -> None:
        """Try again what failed, a step at a time: a change that comes meanwhile waits for one step."""
        steps = self._reconciler.steps()
        while not self.stop.is_set():
            with self._lock:
                if next(steps, self) is self:
                    return
            time.sleep(BREATH_S)  # or we would have the lock again before anyone who waits for it

    def _sweep(self) -> None:
        now = clock.kernel_ns()
        began = time.perf_counter()
        self._telemetry.tend()
        try:
            with self._lock:
                mark = self._reconciler.departures.mark()
            swept = sweep(self._tables["flows"], now, lambda: self._reconciler.wires, self._lock, self._reconciler)
            self._telemetry.swept(swept, time.perf_counter() - began)
            with self._lock:
                self._reconciler.departures.forget(self._tables, mark)
            log.debug("swept %d of %d flows", swept.removed, swept.seen)
        except TableError as error:
            log.warning("sweep flows: %s", error)

    def _counted(self) -> Counted:
        with self._lock:
            reconciler = self._reconciler
            wires = {each.wire.ifindex for each in self._interfaces}
            attached = tuple(Attached(*each) for each in self._attachments.counted(wires))
            return Counted(reconciler.used, [each.problem for each in self._refused()], reconciler.pending, attached)

    def status(self) -> dict[str, Any]:
        """Return what ``ebpfnet status`` shows."""
        with self._lock:
            reconciler = self._reconciler
            owners = reconciler.owners
            listed = [
                {
                    "name": each.name,
                    "ifindex": each.wire.ifindex,
                    "pod": each.pod or owners.get(each.wire.ifindex, ""),
                    "addresses": [str(address) for address in each.addresses],
                    "programs": self._attachments.on(each.wire.ifindex),
                }
                for each in self._interfaces
            ]
            problems = [
                {"ref": str(said.ref), "field": said.field, "reason": said.reason, "partial": partly}
                for said, partly in ((each.problem, each.partial) for each in self._refused())
            ]
            return {
                "node": self.config.node_name,
                "pid": os.getpid(),
                "version": __version__,
                "started": self._started,
                "last_change": self._last_change,
                "synced": reconciler.synced,
                "pending": reconciler.pending,
                "writes": sum(table.writes for name, table in self._tables.items() if name != "flows"),
                "problems": problems,
                "policies": policing.summary(reconciler),
                "watch": [asdict(each) for each in self._source.stats],
                "uplink": list(self.config.uplink),
                "interfaces": listed,
                "socket_shortcut": self._shortcut.state() if self._shortcut else "",
            }


def _on_uplink(config: AgentConfig) -> tuple[str, ...]:
    return ON_UPLINK_BESIDE if config.pod_interfaces else ON_UPLINK


def _needed(config: AgentConfig) -> set[str]:
    """Return the programs that a configuration may put somewhere: the verifier takes a tenth of a second for each.

    A marked wire is ours whatever ``--pod-interfaces`` says, and may come at any time.
    """
    beside = ON_WIRE_BESIDE if config.pod_interfaces else ()
    sockets = abi.SOCKET_PROGRAMS if config.socket_shortcut else ()
    return {*ON_WIRE, *beside, *_on_uplink(config), *ON_LOOPBACK, *sockets}


def _programs(interface: Interface) -> tuple[str, ...]:
    return ON_WIRE_BESIDE if interface.wire.segment else ON_WIRE


def run(config: AgentConfig) -> None:
    """Run an agent until SIGTERM or SIGINT; raises ``EbpfnetError``."""
    agent = Agent(config)

    def end(*_: object) -> None:
        agent.stop.set()
        agent._wake.put(None)  # noqa: SLF001  # the handler is part of the agent

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    agent.run()
