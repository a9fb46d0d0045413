"""Tables that are maps in the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ebpfnet.abi import MapType, TableSpec
from ebpfnet.exits import StaleLayout
from ebpfnet.maps import syscall
from ebpfnet.maps.table import NotMade, TableError, TableFull

CHUNK = 1_024  # a fraction of a millisecond; larger ones are no faster, and leave holes in the heap
FULL = {errno.E2BIG, errno.ENOSPC, errno.ENOMEM}
LRU_SLACK = 256  # an LRU map may hold a few more than it says, in its per-CPU lists


def possible_cpus() -> int:
    """Return how many values a per-CPU map holds for each key."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return int(ranges[-1].split("-")[-1]) + 1


class KernelTable:
    """A map behind a descriptor; ``Table`` of ``ebpfnet.maps.table``. Close it, or let it go."""

    def __init__(self, spec: TableSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd
        per_cpu = spec.type in {MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}
        self.value_size = (spec.value_size + 7) // 8 * 8 * possible_cpus() if per_cpu else spec.value_size
        self.writes = 0
        """Puts and deletes since it was opened, each entry of a batch counted."""
        self._room = ctypes.create_string_buffer(self.value_size)

    def close(self) -> None:
        """Close the descriptor; twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pin(self, path: Path) -> None:
        """Pin at ``path``; raises ``OSError``."""
        syscall.obj_pin(self.fd, path)

    def _failed(self, verb: str, error: OSError) -> TableError:
        number = error.errno or 0
        if number in FULL:
            text = f"table {self.spec.name} is full: no room beyond {self.spec.max_entries} entries"
            return TableFull(number, text)
        return TableError(number, f"{verb} table {self.spec.name}: {error.strerror}")

    def get(self, key: bytes) -> bytes | None:
        """Return the value or None."""
        try:
            return self._room.raw if syscall.lookup(self.fd, key, self._room) else None
        except OSError as error:
            raise self._failed("read", error) from error

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace."""
        self.writes += 1
        try:
            syscall.update(self.fd, key, value)
        except OSError as error:
            raise self._failed("write", error) from error

    def replace(self, key: bytes, value: bytes) -> bool:
        """Put a value in the place of another; False when there is none."""
        self.writes += 1
        try:
            syscall.update(self.fd, key, value, syscall.EXIST)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise self._failed("write", error) from error
        return True

    def put_batch(self, keys: Sequence[bytes] | bytes, values: Sequence[bytes] | bytes) -> None:
        """Insert or replace many."""
        joined_keys = keys if isinstance(keys, bytes) else b"".join(keys)
        joined_values = values if isinstance(values, bytes) else b"".join(values)
        count = len(joined_keys) // self.spec.key_size
        if len(joined_values) != count * self.value_size:
            raise ValueError(f"table {self.spec.name}: {len(joined_values)} bytes of values for {count} keys")
        self._batch(syscall.MAP_UPDATE_BATCH, joined_keys, joined_values, count)

    def delete(self, key: bytes) -> None:
        """Remove; a key that is not there is no error."""
        self.writes += 1
        try:
            syscall.delete(self.fd, key)
        except OSError as error:
            raise self._failed("delete from", error) from error

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many; the kernel stops at a missing key, so that one is skipped and the rest goes on."""
        joined = b"".join(keys)
        start = 0
        while start < len(joined):
            rest = joined[start:]
            done = self._batch(syscall.MAP_DELETE_BATCH, rest, b"", len(rest) // self.spec.key_size)
            start += (done + 1) * self.spec.key_size  # all of it, or up to and over the one that was missing

    def _batch(self, command: int, keys: bytes, values: bytes, count: int) -> int:
        """Run a batch command; returns how many were done (fewer only when a deleted key was missing)."""
        if not count:
            return 0
        self.writes += count
        attributes = syscall.BatchAttributes(count=count, map_fd=self.fd)
        attributes.keys = ctypes.cast(ctypes.c_char_p(keys), ctypes.c_void_p)
        attributes.values = ctypes.cast(ctypes.c_char_p(values), ctypes.c_void_p)
        try:
            syscall.bpf(command, attributes)
        except OSError as error:
            if command == syscall.MAP_DELETE_BATCH and error.errno == errno.ENOENT:
                return int(attributes.count)
            raise self._failed("write", error) from error
        return count

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (joined keys, joined values) of all entries: the fast way to read a whole table back."""
        if self.spec.type in {MapType.ARRAY, MapType.PERCPU_ARRAY}:
            yield self._array()
            return
        count = min(CHUNK, self.spec.max_entries + LRU_SLACK)
        cursor: ctypes.Array[ctypes.c_char] | None = None
        while True:
            next_cursor = ctypes.create_string_buffer(max(self.spec.key_size, 8))
            keys = ctypes.create_string_buffer(count * self.spec.key_size)
            values = ctypes.create_string_buffer(count * self.value_size)
            attributes = syscall.BatchAttributes(count=count, map_fd=self.fd)
            attributes.in_batch = ctypes.addressof(cursor) if cursor else None
            attributes.out_batch = ctypes.addressof(next_cursor)
            attributes.keys, attributes.values = ctypes.addressof(keys), ctypes.addressof(values)
            last = False
            try:
                syscall.bpf(syscall.MAP_LOOKUP_BATCH, attributes)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # a bucket holds more than we have room for
                    count *= 2
                    continue
                if error.errno != errno.ENOENT:
                    raise self._failed("read", error) from error
                last = True
            got = attributes.count
            yield keys.raw[: got * self.spec.key_size], values.raw[: got * self.value_size]
            if last:
                return
            cursor = next_cursor

    def _array(self) -> tuple[bytes, bytes]:
        keys = [index.to_bytes(4, "little") for index in range(self.spec.max_entries)]
        return b"".join(keys), b"".join(self.get(key) or bytes(self.value_size) for key in keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries."""
        key_size, value_size = self.spec.key_size, self.value_size
        for keys, values in self.chunks():
            for index in range(len(keys) // key_size):
                key = keys[index * key_size : (index + 1) * key_size]
                yield key, values[index * value_size : (index + 1) * value_size]


def create(spec: TableSpec) -> KernelTable:
    """Create a map, not pinned; raises ``NotMade`` (EPERM: see ``pins.check_privilege``)."""
    try:
        fd = syscall.map_create(spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name)
    except OSError as error:
        text = f"create table {spec.name} of {spec.max_entries} entries: {error.strerror}"
        raise NotMade(error.errno or 0, text, spec) from error
    return KernelTable(spec, fd)


def difference(spec: TableSpec, fd: int) -> str | None:
    """Return in words how the map behind ``fd`` differs from ``spec``, or None."""
    info = syscall.map_info(fd)
    have = (info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
    names = ("type", "key size", "value size", "max entries", "flags")
    for name, is_, should in zip(names, have, spec[1:], strict=True):
        if is_ != should:
            return f"{name} is {is_}, not {int(should)}"
    return None


def open_pinned(path: Path, spec: TableSpec, *, any_size: bool = False) -> KernelTable:
    """Open what is pinned at ``path``, checked against ``spec`` (``any_size``: whatever number of entries it has).

    Raises ``StaleLayout`` naming the difference, ``OSError`` when nothing is there.
    """
    fd = syscall.obj_get(path)
    try:
        if any_size:
            spec = spec._replace(max_entries=syscall.map_info(fd).max_entries)
        found = difference(spec, fd)
    except OSError as error:
        os.close(fd)
        raise StaleLayout(f"{path} is not a map: {error.strerror}") from error
    if found:
        os.close(fd)
        raise StaleLayout(f"{path}: {found}; `ebpfnet cleanup` removes pins of another version (connections end)")
    return KernelTable(spec, fd)
