"""Every program passes the verifier, and stays of a size that it passes under older kernels too."""

import struct

import pytest

from ebpfnet import abi
from ebpfnet.datapath import build, load
from tests.prog.loaded import Datapath

INSTRUCTIONS_MAX = {
    "from_pod": 9500,
    "to_pod": 5500,
    "from_network": 12500,
    "to_network": 8000,
    "from_pod_beside": 9500,
    "to_pod_beside": 5000,
    "from_host": 8000,
    "to_network_beside": 10500,
    "connect4": 2000,
    "connect6": 2000,
    "getpeername4": 200,
    "getpeername6": 200,
}


@pytest.mark.parametrize("name", abi.PROGRAMS)
def test_loads(compiled: build.Object, loaded: Datapath, name: str) -> None:
    (code,) = (program for program in compiled.programs if program.name == name)
    program = load.load_one(code, loaded.tables)
    program.close()
    assert len(code.instructions) // 8 <= INSTRUCTIONS_MAX[name]


JUMPS, GOTO, CALL, EXIT = (5, 6), 0x00, 0x80, 0x90  # include/uapi/linux/bpf_common.h: classes and operations


def _ways_on(code: list[tuple[int, int]], at: int) -> list[tuple[int, bool]]:
    """Return the instructions that may come after one, and of each whether a jump leads there."""
    opcode, offset = code[at]
    operation = opcode & 0xF0
    if opcode & 7 not in JUMPS or operation == CALL:
        return [(at + 1, False)]
    if operation == EXIT:
        return []
    there = (at + 1 + offset, True)
    return [there] if operation == GOTO else [(at + 1, True), there]


@pytest.mark.parametrize("name", abi.PROGRAMS)
def test_no_program_walks_back_into_a_loop_without_a_jump(compiled: build.Object, name: str) -> None:
    """Linux 6.1 refuses that as a back-edge (kernel/bpf/verifier.c, push_insn: loop_ok is for jumps only)."""
    (program,) = (program for program in compiled.programs if program.name == name)
    words = struct.iter_unpack("<BBhi", program.instructions)
    code = [(opcode, offset) for opcode, _, offset, _ in words]
    done: set[int] = set()
    path = {0: iter(_ways_on(code, 0))}
    while path:
        at, ways = next(reversed(path.items()))
        for to, jumps in ways:
            assert jumps or to not in path, f"{name}: {at} to {to}"
            if to not in path and to not in done:
                path[to] = iter(_ways_on(code, to))
                break
        else:
            done.add(at)
            del path[at]
