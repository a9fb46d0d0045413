"""bpf(2) for maps, through ctypes: as thin as it gets, because the path from event to map runs through here.

Numbers and structures are those of include/uapi/linux/bpf.h (``enum bpf_cmd``, ``union bpf_attr``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from pathlib import Path

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 0, 1, 2, 3, 4
EXIST = 2  # BPF_EXIST: only where there is an entry
OBJ_PIN, OBJ_GET, OBJ_INFO = 6, 7, 15
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


class MapAttributes(ctypes.Structure):
    """BPF_MAP_CREATE."""

    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
    )


class ElementAttributes(ctypes.Structure):
    """BPF_MAP_*_ELEM; ``value`` is the next key's room for BPF_MAP_GET_NEXT_KEY."""

    _fields_ = (
        ("map_fd", ctypes.c_uint64),
        ("key", ctypes.c_char_p),
        ("value", ctypes.c_char_p),
        ("flags", ctypes.c_uint64),
    )


class BatchAttributes(ctypes.Structure):
    """BPF_MAP_*_BATCH."""

    _fields_ = (
        ("in_batch", ctypes.c_void_p),
        ("out_batch", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class PathAttributes(ctypes.Structure):
    """BPF_OBJ_PIN and BPF_OBJ_GET."""

    _fields_ = (("pathname", ctypes.c_char_p), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32))


class InfoAttributes(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64))


class MapInfo(ctypes.Structure):
    """The head of ``struct bpf_map_info``."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """Make the system call; returns its result, raises ``OSError`` with the kernel's errno."""
    result: int = _syscall(SYS_BPF, command, ctypes.addressof(attributes), ctypes.sizeof(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_create(kind: int, key_size: int, value_size: int, max_entries: int, flags: int, name: str) -> int:
    """Create a map and return its descriptor (close-on-exec); raises ``OSError``."""
    return bpf(MAP_CREATE, MapAttributes(kind, key_size, value_size, max_entries, flags, 0, 0, name.encode()[:15]))


def map_info(fd: int) -> MapInfo:
    """Return what the kernel says about a map."""
    info = MapInfo()
    bpf(OBJ_INFO, InfoAttributes(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return info


def obj_pin(fd: int, path: Path) -> None:
    """Pin a map or program at ``path`` on a BPF filesystem; raises ``OSError``."""
    bpf(OBJ_PIN, PathAttributes(os.fsencode(path), fd, 0))


def obj_get(path: Path) -> int:
    """Return a descriptor of what is pinned at ``path``; raises ``OSError``."""
    return bpf(OBJ_GET, PathAttributes(os.fsencode(path), 0, 0))


def lookup(fd: int, key: bytes, room: ctypes.Array[ctypes.c_char]) -> bool:
    """Copy the value of ``key`` into ``room``; False when there is none."""
    attributes = ElementAttributes(fd, key, ctypes.cast(room, ctypes.c_char_p), 0)
    if _syscall(SYS_BPF, MAP_LOOKUP, ctypes.addressof(attributes), 32) == 0:
        return True
    return _absent()


def update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Insert or replace, with ``EXIST`` only replace; raises ``OSError``."""
    attributes = ElementAttributes(fd, key, value, flags)
    if _syscall(SYS_BPF, MAP_UPDATE, ctypes.addressof(attributes), 32) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def delete(fd: int, key: bytes) -> bool:
    """Remove; False when there was nothing."""
    attributes = ElementAttributes(fd, key, None, 0)
    if _syscall(SYS_BPF, MAP_DELETE, ctypes.addressof(attributes), 32) == 0:
        return True
    return _absent()


def _absent() -> bool:
    number = ctypes.get_errno()
    if number == errno.ENOENT:
        return False
    raise OSError(number, os.strerror(number))
