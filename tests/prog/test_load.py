"""Every program passes the verifier, and stays of a size that it passes under older kernels too."""

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
