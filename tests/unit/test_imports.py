"""What a process never loads: a compiler in the agent, a Kubernetes client or netlink in a list."""

import subprocess
import sys

import pytest

SHOW = "import sys, {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"


def loaded_by(module: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", SHOW.format(module)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


MODULES = ("ebpfnet.cli.main", "ebpfnet.agent", "ebpfnet.lab.cluster", "ebpfnet.datapath.load")


@pytest.mark.parametrize("module", MODULES)
def test_bcc_is_loaded_by_the_compiling_child_alone(module: str) -> None:
    assert not {"bcc", "scapy", "pytest"} & loaded_by(module)


def test_the_command_line_starts_light() -> None:
    assert not {"kubernetes", "pyroute2", "watchfiles"} & loaded_by("ebpfnet.cli.main")
