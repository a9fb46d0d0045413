"""Debian's kernels, unpacked beside this machine's own and never installed.

A series is followed through the meta-package that Debian keeps for it, so a security update is picked up by itself;
without the network the newest kernel already unpacked is used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SERIES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
"""Series that are tested → Debian 12's meta-package. The cloud flavour lacks the 9p modules that a boot needs."""


class NoKernel(Exception):
    """A kernel can't be had; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image with its modules, in a folder laid out like ``/``."""

    series: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """Return the file to boot."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"


def kernel(series: str, into: Path) -> Kernel:
    """Return the newest kernel of ``series``, downloaded and unpacked under ``into`` when it is not there yet."""
    package = _package(series)
    if package is None:
        return _newest_unpacked(series, into)
    folder = into / package
    if not folder.is_dir():
        print(f"vm: downloading {package}", flush=True)
        _unpack(package, folder)
    return Kernel(series, package.removeprefix("linux-image-"), folder)


def _package(series: str) -> str | None:
    """Return the package that the meta-package stands for, or None when apt does not know."""
    if series not in SERIES:
        raise NoKernel(f"no series {series}; there are {', '.join(SERIES)}")
    for attempt in range(2):
        answer = subprocess.run(["apt-cache", "depends", SERIES[series]], capture_output=True, text=True, check=False)
        match = re.search(rf"Depends: (linux-image-{re.escape(series)}\.\S+)", answer.stdout)
        if match:
            return match[1]
        if attempt == 0:
            subprocess.run(["apt-get", "-qq", "update"], check=False)
    return None


def _newest_unpacked(series: str, into: Path) -> Kernel:
    found = [path for path in into.glob(f"linux-image-{series}.*") if path.suffix != ".part"]
    if not found:
        raise NoKernel(f"apt offers no kernel {series} ({SERIES[series]}), and none is in {into}")
    folder = max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    return Kernel(series, folder.name.removeprefix("linux-image-"), folder)


def _unpack(package: str, folder: Path) -> None:
    """Fill ``folder`` in one step: what is there under its final name is whole."""
    part = folder.with_suffix(folder.suffix + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # apt's own sandbox user may not write here, and says so on every download.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(command, cwd=part, check=False).returncode:
        raise NoKernel(f"apt-get could not download {package}")
    (archive,) = part.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, part], check=True)
    archive.unlink()
    subprocess.run(["depmod", "--basedir", part, package.removeprefix("linux-image-")], check=True)
    part.rename(folder)
