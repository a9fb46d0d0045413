"""The manifest files of a folder, with what tells a changed one: as cheap as it gets, for it is looked at all the time.

What can't be looked at (a network file system that is away) is not gone: only what is not there is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".yaml", ".yml", ".json")
HIDDEN = (".", "#", "~")
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}  # the last two: a link to what can't be


class Listing(NamedTuple):
    """Files by path, and what could not be looked at: files, or folders with all below."""

    files: dict[str, os.stat_result]
    failed: dict[str, OSError]

    def covers(self, path: str) -> bool:
        """Tell whether a path is one that could not be looked at, or below one."""
        return any(path == each or path.startswith(each + os.sep) for each in self.failed)


def walk(folder: str | Path) -> Listing:
    """List the manifests at and below a folder, through links, too; hidden and editors' files are none."""
    found = Listing({}, {})
    waiting, seen = [str(folder)], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)  # noqa: PTH116  # a Path for each of thousands is what costs
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                waiting += [path for entry in entries if (path := _look(entry, found))]
        except OSError as error:
            _note(found, here, error)
    return found


def _look(entry: os.DirEntry[str], found: Listing) -> str | None:
    """Take one entry in; returns its path when it is a folder."""
    if entry.name.startswith(HIDDEN):
        return None
    try:
        if entry.is_dir():
            return entry.path
        if entry.name.endswith(SUFFIXES) and entry.is_file():
            found.files[entry.path] = entry.stat()
    except OSError as error:
        _note(found, entry.path, error)
    return None


def _note(found: Listing, path: str, error: OSError) -> None:
    if error.errno not in GONE:
        found.failed[path] = error
