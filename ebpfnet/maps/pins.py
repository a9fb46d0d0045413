"""Pinned tables: checked, never trusted, and all checked before the first is made."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ebpfnet.abi import LAYOUT_VERSION, TABLES, TableSpec
from ebpfnet.exits import NoBpffs, NotPinned, NotRoot, NotRunning, StaleLayout
from ebpfnet.maps.kernel import KernelTable, create, open_pinned
from ebpfnet.maps.table import TableError

DEFAULT = Path("/sys/fs/bpf/ebpfnet")
BPF_FS_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h
FIRST = bytes(4)


def is_bpffs(path: Path) -> bool:
    """Return whether ``path`` (or the nearest parent that exists) is on a BPF filesystem."""
    while not path.exists() and path != path.parent:
        path = path.parent
    room = ctypes.create_string_buffer(256)  # struct statfs; its first long is f_type
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), room) != 0:
        return False
    return int.from_bytes(room.raw[:8], "little") == BPF_FS_MAGIC


def check_place(directory: Path) -> None:
    """Raise ``NotRoot`` or ``NoBpffs`` when pins can't live at ``directory``."""
    if os.geteuid() != 0:
        raise NotRoot("this needs root (CAP_BPF and CAP_NET_ADMIN)")
    if not is_bpffs(directory):
        raise _no_bpffs(directory)


def _no_bpffs(directory: Path) -> NoBpffs:
    usual = DEFAULT.parent
    place = usual if usual in directory.parents else directory
    return NoBpffs(f"{directory} is not on a BPF filesystem; mount one: mount -t bpf bpf {place}")


def open_all(directory: Path) -> dict[str, KernelTable]:
    """Open every table pinned in ``directory``, of whatever size, for reading.

    Raises ``NotRoot``, ``NoBpffs``, ``NotRunning`` when nothing is pinned there, ``StaleLayout``.
    """
    if os.geteuid() != 0:
        raise NotRoot("reading the maps needs root (CAP_BPF)")
    if not directory.is_dir():
        raise NotRunning(f"no tables in {directory}: no agent has run here (or give --pins, --lab, --node)")
    if not is_bpffs(directory):
        raise _no_bpffs(directory)
    tables: dict[str, KernelTable] = {}
    try:
        for name, spec in TABLES.items():
            try:
                tables[name] = open_pinned(directory / name, spec, any_size=True)
            except FileNotFoundError as error:
                raise StaleLayout(f"{directory}: table {name} is missing; restart the agent") from error
        _check_version(tables["layout"], directory)
    except Exception:
        close_all(tables)
        raise
    return tables


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[dict[str, KernelTable]]:
    """Open every table as `open_all` does, and close them in the end."""
    tables = open_all(directory)
    try:
        yield tables
    finally:
        close_all(tables)


def _check_version(table: KernelTable, directory: Path) -> None:
    version = int.from_bytes(table.get(FIRST) or b"", "little")
    if version != LAYOUT_VERSION:
        text = f"{directory} holds tables of layout {version}, this is {LAYOUT_VERSION}"
        raise StaleLayout(f"{text}; `ebpfnet cleanup` removes them (connections end)")


def create_or_open_all(directory: Path, specs: Mapping[str, TableSpec] = TABLES) -> dict[str, KernelTable]:
    """Open what is pinned in ``directory`` and make what is not there.

    Everything that is there is checked before anything is made. Raises ``NotRoot``, ``NoBpffs``, ``NotPinned``,
    ``StaleLayout``, ``TableError``.
    """
    check_place(directory)
    tables: dict[str, KernelTable] = {}
    made: list[Path] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, spec in specs.items():
            with contextlib.suppress(FileNotFoundError):
                tables[name] = open_pinned(directory / name, spec)
        if tables and "layout" in tables:
            _check_version(tables["layout"], directory)
        for name, spec in specs.items():
            if name not in tables:
                tables[name] = create(spec)
                _publish(tables[name], directory / name)
                made.append(directory / name)
    except Exception as error:
        close_all(tables)
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, TableError) and error.errno == errno.EPERM:
            raise NotRoot(f"{error}; this needs CAP_BPF") from error
        if isinstance(error, OSError) and not isinstance(error, TableError):
            raise not_pinned(directory, error) from error
        raise
    return tables


def not_pinned(directory: Path, error: OSError) -> NotPinned:
    """Return what to say when pins can't be made or opened."""
    return NotPinned(f"pin maps and programs in {directory}: {error.strerror}; what is pinned there goes on as it is")


def _publish(table: KernelTable, path: Path) -> None:
    """Pin a new table; the layout table carries its version before anyone can see it."""
    if table.spec.name == "layout":
        table.put(FIRST, LAYOUT_VERSION.to_bytes(8, "little"))
    table.pin(path)


def close_all(tables: Mapping[str, KernelTable]) -> None:
    """Close every table."""
    for table in tables.values():
        table.close()
