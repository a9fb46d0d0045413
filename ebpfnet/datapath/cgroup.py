"""The shortcut at connect time: programs on a cgroup, for the sockets of all processes in it and below it.

A pinned ``bpf_link`` holds each program there (kernel/bpf/cgroup.c): the next agent puts its own version into the link
in one step, other tools' programs on the cgroup stay, and without the pin the link is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from ebpfnet import abi
from ebpfnet.datapath.load import ATTACH_TYPES, Program
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps.syscall import OBJ_INFO, InfoAttributes, bpf, obj_get, obj_pin
from ebpfnet.maps.table import Table

LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h
ROOT_ID = 1  # of the machine's root cgroup (fs/kernfs: the root's inode); a container's own root has another
ROOT = "root"
"""In place of a cgroup's path: the root of the machine's cgroup2 hierarchy."""
PINS = {f"link_{name}": name for name in abi.SOCKET_PROGRAMS}
"""Names of the links' pins, and the program that each holds."""


class WrongCgroup(EbpfnetError):
    """The cgroup is not there, is no cgroup2, or does not take programs."""


class _LinkCreate(ctypes.Structure):
    """The head of ``union bpf_attr`` for BPF_LINK_CREATE."""

    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class _LinkUpdate(ctypes.Structure):
    """The head of ``union bpf_attr`` for BPF_LINK_UPDATE."""

    _fields_ = (
        ("link_fd", ctypes.c_uint32),
        ("new_prog_fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("old_prog_fd", ctypes.c_uint32),
    )


class _LinkDetach(ctypes.Structure):
    """The head of ``union bpf_attr`` for BPF_LINK_DETACH."""

    _fields_ = (("link_fd", ctypes.c_uint32),)


class _LinkInfo(ctypes.Structure):
    """The head of ``struct bpf_link_info``, of a link to a cgroup."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64),
        ("attach_type", ctypes.c_uint32),
    )


def mounts(mountinfo: str) -> list[Path]:
    """Return where cgroup2 is mounted, from the text of a /proc/PID/mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            found.append(Path(before.split()[4].encode().decode("unicode_escape")))
    return found


def find(name: str) -> Path:
    """Return the cgroup that a flag means; raises ``WrongCgroup``."""
    mounted = mounts(Path("/proc/self/mountinfo").read_text())
    if name == ROOT:
        for path in mounted:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == ROOT_ID:
                    return path
        seen = f"what is at {mounted[0]} is a container's part of it" if mounted else "no cgroup2 is mounted"
        raise WrongCgroup(f"the root of the machine's cgroup2 is not here ({seen}); mount it, or name a cgroup")
    path = Path(name)
    if not path.is_dir():
        raise WrongCgroup(f"{path}: no such cgroup")
    if not any(path.resolve().is_relative_to(root) for root in mounted):
        places = ", ".join(map(str, mounted)) or "nowhere"
        raise WrongCgroup(f"{path} is no cgroup of version 2 (cgroup2 is mounted at: {places})")
    return path


class Shortcut:
    """The programs on one cgroup."""

    def __init__(self, cgroup: Path, pins: Path) -> None:
        self.cgroup = cgroup
        self._pins = pins

    def attach(self, programs: Mapping[str, Program]) -> None:
        """Put the programs on the cgroup, in place of their former versions; raises ``WrongCgroup``."""
        directory = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # What shows a socket's peer comes first: nobody ever sees a backend there.
            for pin, name in reversed(PINS.items()):
                if not self._update(self._pins / pin, programs[name]):
                    self._create(self._pins / pin, programs[name], directory)
        except OSError as error:
            raise WrongCgroup(f"put programs on cgroup {self.cgroup}: {error.strerror}") from error
        finally:
            os.close(directory)

    def state(self) -> str:
        """Return the cgroup, for people: and what is wrong, when somebody removed it or the links."""
        held = (cgroup_of(self._pins / pin) for pin in PINS)
        with contextlib.suppress(OSError):
            if set(held) == {self.cgroup.stat().st_ino}:
                return str(self.cgroup)
        return f"{self.cgroup} (NOT attached: the cgroup or a link was removed)"

    def _update(self, pin: Path, program: Program) -> bool:
        """Replace the program of a pinned link; False when there is none to our cgroup."""
        if cgroup_of(pin) != self.cgroup.stat().st_ino:
            return False
        with _pinned(pin) as link:
            bpf(LINK_UPDATE, _LinkUpdate(link, program.fd))
        return True

    def _create(self, pin: Path, program: Program, directory: int) -> None:
        """Pin a new link, and only then end one to another cgroup."""
        with contextlib.ExitStack() as stack:
            former = stack.enter_context(_pinned(pin)) if pin.exists() else None
            link = create_link(program, directory)
            stack.callback(os.close, link)
            temporary = pin.with_name(f"{pin.name}_new")
            temporary.unlink(missing_ok=True)
            obj_pin(link, temporary)
            temporary.rename(pin)
            if former is not None:
                bpf(LINK_DETACH, _LinkDetach(former))


@contextlib.contextmanager
def _pinned(pin: Path) -> Iterator[int]:
    link = obj_get(pin)
    try:
        yield link
    finally:
        os.close(link)


def create_link(program: Program, directory: int) -> int:
    """Put a program on a cgroup (a descriptor), for as long as the returned link is held; raises ``OSError``."""
    return bpf(LINK_CREATE, _LinkCreate(program.fd, directory, ATTACH_TYPES[program.name]))


def cgroup_of(pin: Path) -> int:
    """Return the id of the cgroup that a pinned link is on; 0: there is no such link, or no such cgroup any more."""
    info = _LinkInfo()
    try:
        with _pinned(pin) as link:
            bpf(OBJ_INFO, InfoAttributes(link, ctypes.sizeof(info), ctypes.addressof(info)))
    except FileNotFoundError:
        return 0
    return int(info.cgroup_id)


def detach(pins: Path) -> None:
    """Take the programs off whatever cgroup they are on; connections go on as they are."""
    for pin in PINS:  # connecting first: what was connected shows its service till the end
        with contextlib.suppress(FileNotFoundError), _pinned(pins / pin) as link:
            bpf(LINK_DETACH, _LinkDetach(link))  # at once; with the last descriptor it would be a moment later
            (pins / pin).unlink()


def admit_own_namespace(namespaces: Table) -> None:
    """Let this process' network namespace, the node's, use the shortcut; a pod's is met by its packets."""
    with socket.socket() as any_socket:
        cookie = int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
    for zero in (abi.V4_PREFIX + bytes(4), bytes(16)):
        namespaces.put(abi.Netns(cookie, zero == bytes(16)).pack(), zero)


def serve(name: str, programs: Mapping[str, Program], tables: Mapping[str, Table], pins: Path) -> Shortcut | None:
    """Have the shortcut on the cgroup that a flag names, and nowhere else; empty: have none. Raises ``WrongCgroup``."""
    if not name:
        detach(pins)
        return None
    shortcut = Shortcut(find(name), pins)
    admit_own_namespace(tables["namespaces"])
    shortcut.attach(programs)
    return shortcut
