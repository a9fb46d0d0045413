"""The compiler of this machine turns bpf/ into the programs that the agent loads."""

import pytest

from ebpfnet import abi
from ebpfnet.datapath import build


@pytest.fixture(scope="module")
def compiled() -> build.Object:
    return build.compiled(cache=None)


def test_every_program_is_there(compiled: build.Object) -> None:
    assert sorted(program.name for program in compiled.programs) == sorted(abi.PROGRAMS)


def test_programs_name_our_tables_only(compiled: build.Object) -> None:
    named = {name for program in compiled.programs for _, name in program.relocations}
    assert named <= set(abi.TABLES)
