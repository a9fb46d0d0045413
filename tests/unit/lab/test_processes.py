"""Processes of a lab."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet.lab import processes

SELECT_LIMIT = 1024  # FD_SETSIZE


@pytest.fixture
def crowded() -> Iterator[None]:
    """Fill the descriptors that select(2) knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SELECT_LIMIT + 64), hard))
    taken = [os.dup(0)]
    while taken[-1] < SELECT_LIMIT:
        taken.append(os.dup(0))
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("crowded")
def test_stopped_from_a_process_with_many_descriptors(tmp_path: Path):
    with subprocess.Popen(["sleep", "600"]) as started:
        stat = Path(f"/proc/{started.pid}/stat").read_text()
        record = tmp_path / "sleep"
        record.write_text(stat)
        process = processes.recorded(record)
        assert process
        processes.stop([process])
        assert started.wait() == -15
    assert not record.exists()


def test_what_is_started_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "enter", lambda _, command: ["sh", "-c", 'sleep 0.2; exec "$@"', "sh", *command])
    with (tmp_path / "log").open("wb") as log:
        processes.start("", ["sleep", "600"], tmp_path / "record", log)
    process = processes.recorded(tmp_path / "record")
    assert process
    processes.stop([process])
