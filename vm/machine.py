"""One run of the tests in one virtual machine, and what came of it.

The machine's root is this machine's, read-only, with writable layers in memory over it (virtme-ng); only the folder of
the report is shared for writing. A machine that hangs, panics or ends without saying how is lost, and never a pass.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm.kernels import Kernel

PROJECT = Path(__file__).resolve().parent.parent
CPUS = 2
MEMORY = "2G"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of one kernel's tests; ``lost`` says why there is no result, and is empty when there is one."""

    kernel: Kernel
    seconds: float
    passed: int = 0
    failed: int = 0
    lost: str = ""

    @property
    def good(self) -> bool:
        """Return whether tests ran and all passed."""
        return not self.lost and self.passed > 0 and self.failed == 0

    def __str__(self) -> str:
        counts = f"lost: {self.lost}" if self.lost else f"{self.passed} passed, {self.failed} failed"
        return f"{self.kernel.series:5} {self.kernel.release:24} {counts} ({self.seconds:.0f} s)"


def run(kernel: Kernel, tests: Sequence[str], report: Path, timeout_s: float) -> Outcome:
    """Boot ``kernel``, run pytest with ``tests`` in it, and read the result from the folder ``report``."""
    for name in ("status", "release", "junit.xml", "pytest.log"):
        (report / name).unlink(missing_ok=True)
    start = time.monotonic()
    ended = _boot(kernel, tests, report, timeout_s)
    seconds = time.monotonic() - start
    lost = _why_lost(kernel, report, timeout_s if not ended else None)
    if lost:
        return Outcome(kernel, seconds, lost=f"{lost}; see {(report / 'console.log').relative_to(PROJECT)}")
    return Outcome(kernel, seconds, *_counts(report))


def _command(kernel: Kernel, tests: Sequence[str], report: Path) -> list[str]:
    inside = shlex.join([str(PROJECT / "vm" / "guest.sh"), str(PROJECT), str(report), *tests])
    return [
        *(str(PROJECT / ".venv/bin/vng"), "--verbose", "--disable-monitor", "--disable-kvm", "--force-9p"),
        *("--run", str(kernel.image), "--cpus", str(CPUS), "--memory", MEMORY, "--user", "root"),
        # A panic ends the machine at once: it is lost, not hanging.
        *("--append", "panic=-1", "--append", "oops=panic"),
        *("--cwd", str(PROJECT), "--rwdir", str(report), "--exec", inside),
    ]


def _boot(kernel: Kernel, tests: Sequence[str], report: Path, timeout_s: float) -> bool:
    """Run the machine with its console going to ``console.log``; return False when it had to be ended."""
    home = report / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    environment["PATH"] = f"{PROJECT / '.venv/bin'}:{environment['PATH']}"  # vng starts virtme-run by name
    with (report / "console.log").open("wb") as console:
        machine = subprocess.Popen(
            _command(kernel, tests, report),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            machine.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
    return True


def _why_lost(kernel: Kernel, report: Path, timed_out_s: float | None) -> str:
    if (report / "status").exists():
        release = (report / "release").read_text().strip()
        return "" if release == kernel.release else f"it booted {release}"
    if timed_out_s is not None:
        return f"no exit status after {timed_out_s:.0f} s"
    return "it ended without an exit status" if (report / "release").exists() else "it never came to the tests"


def _counts(report: Path) -> tuple[int, int]:
    """Return (passed, failed); a status that the counts do not explain is one more failure."""
    status = int((report / "status").read_text())
    written = report / "junit.xml"
    suites = list(ET.parse(written).iter("testsuite")) if written.exists() else []  # noqa: S314  # our own pytest's
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    # A skip counts as a failure: nothing may be missing in a machine that we make ourselves.
    failed = sum(int(suite.get(kind, 0)) for suite in suites for kind in ("failures", "errors", "skipped"))
    return total - failed, failed or int(status != 0)
