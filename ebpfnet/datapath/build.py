"""Compile the datapath: C text in, relocatable instructions out.

BCC runs in a child process, because some mistakes in C abort the whole process and LLVM never leaves memory. The child
declares every map with one entry, so compiling allocates nothing; it hands back each program's instructions and which
map each 64-bit load names. ``ebpfnet.datapath.load`` puts real maps in. A compiled object is kept on disk under the
hash of everything that went into it, so a restart compiles nothing and needs no compiler.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ebpfnet import abi
from ebpfnet.datapath import source
from ebpfnet.exits import CompileFailed

INSTRUCTION = 8
LD_IMM64 = 0x18
PSEUDO_MAP_FD = 1
DEFAULT_CACHE = Path("/var/cache/ebpfnet")
FLAGS = (
    "-O2",
    "-Wno-macro-redefined",
    "-Wno-unused-function",
    "-Wno-incompatible-pointer-types-discards-qualifiers",
    "-Wno-address-of-packed-member",
)


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions of one program and where they name a map: ((instruction index, map name), …)."""

    name: str
    instructions: bytes
    relocations: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Object:
    """All programs of one compilation."""

    programs: tuple[Program, ...]


def compiled(
    cache: Path | None = DEFAULT_CACHE, main: Path | None = None, programs: Sequence[str] = abi.PROGRAMS
) -> Object:
    """Return the compiled datapath, from ``cache`` when it holds this very text (None: always compile).

    ``main`` is another text than the datapath's, ``programs`` are the functions to take from it. Raises
    ``CompileFailed`` with the compiler's own messages, also when BCC is not installed.
    """
    text = source.flatten(main or source.bpf_dir() / "ebpfnet.c")
    key = hashlib.sha256(repr((text, tuple(programs), FLAGS, platform.machine(), _bcc_version())).encode()).hexdigest()
    path = cache / f"{key}.json" if cache else None
    if path:
        try:
            return _decode(path.read_text())
        except (OSError, ValueError, KeyError):
            pass  # not there, or cut short by a crash: compile
    answer = _compile_in_child(text, programs)
    built = _decode(answer)
    if path:
        _store(path, answer)
    return built


def _bcc_version() -> str:
    """Return what identifies the installed compiler: a new library makes old objects stale."""
    for library in sorted(Path("/usr/lib").glob("*/libbcc.so.0*")):
        status = library.stat()
        return f"{library.resolve().name} {status.st_size} {status.st_mtime_ns}"
    return ""


def _store(path: Path, text: str) -> None:
    """Keep an object, whole or not at all; a cache that can't be written costs the next start a second, no more."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _compile_in_child(text: str, programs: Sequence[str]) -> str:
    command = [sys.executable, "-m", "ebpfnet.datapath.build", *programs]
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(source.bpf_dir() / "kernel")}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        detail = done.stderr.strip() or f"the compiler ended with status {done.returncode}"
        raise CompileFailed(f"compile the datapath: {detail}")
    return done.stdout.splitlines()[-1]


def _decode(text: str) -> Object:
    programs = []
    for entry in json.loads(text)["programs"]:
        relocations = tuple((index, name) for index, name in entry["relocations"])
        programs.append(Program(entry["name"], base64.b64decode(entry["instructions"]), relocations))
    return Object(tuple(programs))


def _relocations(code: bytes, tables: dict[int, str]) -> list[tuple[int, str]]:
    """Find the loads of a map (``struct bpf_insn``: opcode, registers, offset, 32-bit immediate)."""
    found = []
    for index in range(len(code) // INSTRUCTION):
        instruction = code[index * INSTRUCTION : (index + 1) * INSTRUCTION]
        if instruction[0] == LD_IMM64 and instruction[1] >> 4 == PSEUDO_MAP_FD:
            found.append((index, tables[int.from_bytes(instruction[4:8], "little")]))
    return found


def _check_sizes(bpf: object) -> dict[int, str]:
    """Compare BCC's own idea of every map with ours; returns map names by file descriptor."""
    from bcc import lib  # the child's business only

    lib.bpf_table_name.restype = ctypes.c_char_p  # BCC 0.26 does not declare these three
    lib.bpf_table_name.argtypes = lib.bpf_table_fd_id.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    module = bpf.module  # type: ignore[attr-defined]
    names = {}
    for table in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, table).decode()
        spec = abi.TABLES[name]
        sizes = (lib.bpf_table_key_size_id(module, table), lib.bpf_table_leaf_size_id(module, table))
        if sizes != (spec.key_size, spec.value_size):
            raise SystemExit(f"map {name}: C has key and value of {sizes} bytes, Python {spec[2:4]}")
        names[int(lib.bpf_table_fd_id(module, table))] = name
    return names


def main() -> None:
    """Compile the text on standard input with BCC and print the programs named as arguments as one line of JSON."""
    try:
        from bcc import BPF
    except ImportError as error:
        raise SystemExit(f"BCC is not installed ({error}); on Debian: apt-get install python3-bpfcc") from error
    triplet = f"{platform.machine()}-linux-gnu"
    includes = ["-isystem", "/usr/include", "-isystem", f"/usr/include/{triplet}"]
    try:
        bpf = BPF(text=sys.stdin.read().encode(), cflags=[*FLAGS, *includes])
    except Exception as error:
        raise SystemExit(f"{error}") from error
    tables = _check_sizes(bpf)
    programs = []
    for name in sys.argv[1:]:
        code = bpf.dump_func(name.encode())
        entry = {
            "name": name,
            "instructions": base64.b64encode(code).decode(),
            "relocations": _relocations(code, tables),
        }
        programs.append(entry)
    print(json.dumps({"programs": programs}))


if __name__ == "__main__":
    main()
