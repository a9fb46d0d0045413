"""What a lab leaves on disk, so that another process, or the next one after a crash, can find and remove all of it.

Everything of lab NAME is under /run/ebpfnet-lab/NAME::

    lab.json          the plan and the options; written before anything in it is made
    manifests/        the cluster's objects, as files; edit them while the lab runs
    manifests.1/      what was there before `lab up -f` brought others
    bpf/NODE/         pinned programs and maps, on a bpffs mounted for this lab
    nodes/NODE/       agent.sock, agent.log, and agent.log.old of the agent before
    processes/        who was started: one file each, the process's own /proc/PID/stat line
    logs/             output of the echo servers
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ebpfnet.exits import EbpfnetError, NotRunning
from ebpfnet.lab import namespace, processes
from ebpfnet.lab.topology import Plan
from ebpfnet.places import LABS

FOLDER = LABS
VERSION = 1
UPLINK_MTU = 1500
# A process that was killed while it started another leaves its lock to the child until that has become its own program.
LOCK_SECONDS = 3.0


class NoSuchLabError(NotRunning):
    """No lab of that name is up."""


class LabBusyError(EbpfnetError):
    """Another process is building or removing this lab."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that a lab belongs to: a demo, which takes it down at its end."""

    pid: int
    start_time: int

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return processes.Process(Path(), self.pid, self.start_time).alive()


@dataclass(frozen=True, slots=True)
class Options:
    """How a lab was asked for; ``owner`` is None when a person did."""

    agents: bool = True
    uplink_mtu: int = UPLINK_MTU
    agent_arguments: tuple[str, ...] = ()
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Content of lab.json. While ``settled`` is false the plan names more than what is there, never less.

    Then ``sure`` is what is there all the same, because nothing of it is being changed.
    """

    version: int
    settled: bool
    options: Options
    plan: Plan
    sure: Plan | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of one lab."""

    name: str

    @property
    def root(self) -> Path:
        """The lab's own folder."""
        return FOLDER / self.name

    @property
    def bpf(self) -> Path:
        """Where the lab's bpffs is mounted."""
        return self.root / "bpf"

    @property
    def manifests(self) -> Path:
        """The folder that the agents follow."""
        return self.root / "manifests"

    @property
    def processes(self) -> Path:
        """Records of the processes that were started."""
        return self.root / "processes"

    @property
    def logs(self) -> Path:
        """Output of the echo servers."""
        return self.root / "logs"

    def pins(self, node: str) -> Path:
        """Where a node's agent pins. A bpffs has no names with dots, and a node's name no underscore."""
        return self.bpf / node.replace(".", "_")

    def run(self, node: str) -> Path:
        """Where a node's agent has its socket and log."""
        return self.root / "nodes" / node

    def create(self) -> None:
        """Make the folders, and mount the bpffs."""
        for folder in (self.bpf, self.manifests, self.processes, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.path.ismount(self.bpf):
            namespace.mount(b"bpffs", self.bpf, b"bpf")

    def clear(self) -> None:
        """Unmount and delete everything in the lab's folder; what is gone already is no error."""
        namespace.unmount(self.bpf)
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount and delete everything, the lab's folder too."""
        self.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(OSError):
            FOLDER.rmdir()


def load(name: str) -> State:
    """Return a lab's state; raises ``NoSuchLabError``."""
    try:
        raw = (FOLDER / name / "lab.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        others = ", ".join(names()) or "none"
        raise NoSuchLabError(f"no lab {name!r} is up (labs: {others}); `ebpfnet lab up` starts one") from None
    try:
        return msgspec.json.decode(raw, type=State)
    except msgspec.MsgspecError as error:
        raise NoSuchLabError(f"lab {name!r}: lab.json is from another version ({error}); `ebpfnet lab down`") from error


def save(places: Places, state: State) -> None:
    """Write a lab's state in one step."""
    text = msgspec.json.format(msgspec.json.encode(state), indent=1)
    draft = places.root / "lab.json.new"
    draft.write_bytes(text + b"\n")
    draft.replace(places.root / "lab.json")


def names() -> list[str]:
    """Return the names of all labs on this machine."""
    try:
        return sorted(path.name for path in FOLDER.iterdir() if (path / "lab.json").exists())
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def locked(places: Places) -> Iterator[None]:
    """Be the only one to build or remove this lab; raises ``LabBusyError``."""
    descriptor = _lock(places)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(places: Places) -> int:
    """Lock the lab's folder; a folder that was removed meanwhile is not the lab's any more, so look again."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        places.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(places.root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if places.root.exists() and os.path.samestat(os.fstat(descriptor), places.root.stat()):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise LabBusyError(f"lab {places.name!r} is being built or removed by another process") from None
            time.sleep(0.02)
        os.close(descriptor)
