"""Put compiled programs into the kernel: maps patched in, ``BPF_PROG_LOAD``, verifier's log on refusal."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ebpfnet import abi
from ebpfnet.datapath.build import INSTRUCTION, Object
from ebpfnet.datapath.build import Program as Code
from ebpfnet.exits import LoadFailed
from ebpfnet.maps.syscall import bpf, obj_get, obj_pin

BPF_PROG_LOAD = 5
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_CGROUP_SOCK_ADDR = 3, 18
ATTACH_TYPES = dict(zip(abi.SOCKET_PROGRAMS, (10, 11, 29, 30), strict=True))
"""BPF_CGROUP_INET4_CONNECT and so on (``enum bpf_attach_type``); what is not named here is for tc."""
LOG_BYTES = 1 << 20
LICENSE = b"GPL"


class Descriptor(Protocol):
    """Anything that holds a map's file descriptor."""

    @property
    def fd(self) -> int:
        """The descriptor."""


class _LoadAttributes(ctypes.Structure):
    """The head of ``union bpf_attr`` for BPF_PROG_LOAD (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    )


class Program:
    """A loaded program. ``close`` drops our reference; pins and attached filters keep the program alive."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def pin(self, path: Path) -> None:
        """Pin at ``path``, in place of what is pinned there; raises ``OSError``."""
        temporary = path.with_name(f"{path.name}_new")
        temporary.unlink(missing_ok=True)
        obj_pin(self.fd, temporary)
        temporary.rename(path)

    def close(self) -> None:
        """Close the descriptor; twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _patched(code: Code, tables: Mapping[str, Descriptor]) -> bytearray:
    instructions = bytearray(code.instructions)
    for index, name in code.relocations:
        start = index * INSTRUCTION + 4
        instructions[start : start + 4] = tables[name].fd.to_bytes(4, "little")
    return instructions


def load_one(code: Code, tables: Mapping[str, Descriptor]) -> Program:
    """Load one program over ``tables`` (every map it names); raises ``LoadFailed`` with the verifier's last words."""
    instructions = (ctypes.c_char * len(code.instructions)).from_buffer(_patched(code, tables))
    license_text = ctypes.create_string_buffer(LICENSE)
    attributes = _LoadAttributes(
        prog_type=BPF_PROG_TYPE_CGROUP_SOCK_ADDR if code.name in ATTACH_TYPES else BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt=len(code.instructions) // INSTRUCTION,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        prog_name=code.name.encode()[:15],
        expected_attach_type=ATTACH_TYPES.get(code.name, 0),
    )
    try:
        return Program(code.name, bpf(BPF_PROG_LOAD, attributes))
    except OSError as first:
        log = ctypes.create_string_buffer(LOG_BYTES)
        attributes.log_level, attributes.log_size, attributes.log_buf = 1, LOG_BYTES, ctypes.addressof(log)
        try:
            return Program(code.name, bpf(BPF_PROG_LOAD, attributes))
        except OSError:
            tail = "\n".join(log.value.decode(errors="replace").splitlines()[-20:])
            raise LoadFailed(f"load program {code.name}: {first.strerror}\n{tail}") from first


def load(
    compiled: Object, tables: Mapping[str, Descriptor], names: Collection[str] = abi.PROGRAMS
) -> dict[str, Program]:
    """Load the programs of these names; on an error none stays. Raises ``LoadFailed``.

    The verifier takes a tenth of a second for each, and works on several at once.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        loading = [pool.submit(load_one, code, tables) for code in compiled.programs if code.name in names]
    failed = next((each.exception() for each in loading if each.exception()), None)
    programs = {each.result().name: each.result() for each in loading if not each.exception()}
    if failed is not None:
        for program in programs.values():
            program.close()
        raise failed
    return programs


class _ProgInfo(ctypes.Structure):
    """The head of ``struct bpf_prog_info``."""

    _fields_ = (("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("tag", ctypes.c_uint8 * 8))


class _InfoAttributes(ctypes.Structure):
    """The part of ``union bpf_attr`` for BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64))


def tag_of(fd: int) -> bytes:
    """Return the kernel's hash of a program's instructions; the maps that it is over make no difference."""
    info = _ProgInfo()
    bpf(BPF_OBJ_GET_INFO_BY_FD, _InfoAttributes(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return bytes(info.tag)


def is_pinned(program: Program, path: Path) -> bool | None:
    """Tell whether what is pinned at ``path`` is this program's like; None: nothing is."""
    try:
        fd = obj_get(path)
    except OSError:
        return None
    try:
        return tag_of(fd) == tag_of(program.fd)
    finally:
        os.close(fd)
