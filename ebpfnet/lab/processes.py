"""Processes of a lab: started inside a network namespace, recorded by themselves, stopped by record.

A process writes its own /proc/PID/stat line to its record before it becomes the command, so there is no moment in
which it runs unrecorded. A record is believed only while the start time still fits: a pid that was used again is not
ours, and is never signalled.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ebpfnet.lab import namespace

_RECORD_AND_BECOME = 'read -r line < /proc/$$/stat && printf "%s\\n" "$line" > "$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class Process:
    """One process that was started: ``start_time`` in clock ticks since boot."""

    record: Path
    pid: int
    start_time: int

    def alive(self) -> bool:
        """Say whether it still runs (a zombie does not)."""
        return self._state() not in {None, "Z", "X"}

    def exists(self) -> bool:
        """Say whether it is there, be it as a zombie."""
        return self._state() is not None

    def _state(self) -> str | None:
        stat = _read_stat(Path(f"/proc/{self.pid}/stat"))
        return stat[2] if stat is not None and stat[1] == self.start_time else None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        descriptor = _open(self.pid)
        if descriptor is None:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def this() -> Process:
    """Return the calling process; it has no record."""
    pid, start_time, _ = _read_stat(Path("/proc/self/stat")) or (0, 0, "")
    return Process(Path(), pid, start_time)


def enter(netns: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command in a network namespace, and in nothing else of it."""
    return ["nsenter", f"--net={namespace.path(netns)}", *command]


def start(netns: str, command: Sequence[str], record: Path, log: BinaryIO, keep: Sequence[int] = ()) -> None:
    """Start a process in a network namespace, in a session of its own; ``keep`` are descriptors it inherits."""
    record.unlink(missing_ok=True)
    started = subprocess.Popen(
        enter(netns, ["/bin/sh", "-c", _RECORD_AND_BECOME, str(record), *command]),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        start_new_session=True,
        pass_fds=tuple(keep),
    )
    while started.poll() is None and recorded(record) is None:  # or somebody thinks it is not there, and starts another
        time.sleep(0.001)
    # Collect it when it ends, so that it is never a zombie of ours.
    threading.Thread(target=started.wait, daemon=True).start()


def recorded(record: Path) -> Process | None:
    """Return the process of a record, running or not."""
    stat = _read_stat(record)
    return None if stat is None else Process(record, stat[0], stat[1])


def all_recorded(folder: Path) -> list[Process]:
    """Return the processes of a folder of records."""
    if not folder.is_dir():
        return []
    return [process for path in sorted(folder.iterdir()) if (process := recorded(path)) is not None]


def stop(processes: Iterable[Process], grace: float = 3.0) -> None:
    """End processes: SIGTERM, after ``grace`` seconds SIGKILL; wait until they are gone, and forget them."""
    gone = list(processes)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        for process in gone:
            process.signal(number)
        wait_gone(gone, seconds)
    for process in gone:
        if not process.alive():
            process.record.unlink(missing_ok=True)


def wait_gone(processes: Iterable[Process], seconds: float) -> None:
    """Wait until nothing of them runs, at most so long."""
    deadline = time.monotonic() + seconds
    for process in processes:
        descriptor = _open(process.pid)
        if descriptor is None:
            continue
        poll = select.poll()  # select() takes no descriptor above 1,023
        poll.register(descriptor, select.POLLIN)
        try:
            # Not when it is a zombie: that is its first thread, and others may still hold its files and their locks.
            if process.exists() and (left := deadline - time.monotonic()) > 0:
                poll.poll(left * 1000)
        finally:
            os.close(descriptor)


def _open(pid: int) -> int | None:
    """Return a pidfd, None when there is no such process.

    Up to 6.12 at least a reaped process whose pid somebody still holds is EINVAL, not ESRCH (seen with
    6.12.117; 6.18 says ESRCH).
    """
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _read_stat(path: Path) -> tuple[int, int, str] | None:
    """Return pid, start time and state of a /proc/PID/stat line (proc(5): fields 1, 22 and 3)."""
    try:
        text = path.read_text()
        fields = text.rpartition(")")[2].split()
        return int(text.split(" ", 1)[0]), int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError):
        return None
