"""A machine's report is read strictly: what is not plainly a pass is a failure."""

from pathlib import Path

import pytest

from vm import machine
from vm.kernels import Kernel

KERNEL = Kernel("6.1", "6.1.0-9-amd64", Path("/nowhere"))
JUNIT = '<testsuites><testsuite tests="5" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.fixture
def report(tmp_path: Path) -> Path:
    (tmp_path / "status").write_text("0\n")
    (tmp_path / "release").write_text(KERNEL.release + "\n")
    (tmp_path / "junit.xml").write_text(JUNIT.format(0, 0, 0))
    return tmp_path


def test_all_passed(report: Path) -> None:
    assert machine._counts(report) == (5, 0)


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_failures_errors_and_skips_are_failures(report: Path, counts: tuple[int, int, int]) -> None:
    (report / "junit.xml").write_text(JUNIT.format(*counts))
    assert machine._counts(report) == (4, 1)


def test_a_status_that_the_counts_do_not_explain_is_a_failure(report: Path) -> None:
    (report / "status").write_text("3\n")
    assert machine._counts(report) == (5, 1)


def test_no_counts_at_all_are_a_failure(report: Path) -> None:
    (report / "junit.xml").unlink()
    assert not machine.Outcome(KERNEL, 1.0, *machine._counts(report)).good


def test_a_result_is_not_lost(report: Path) -> None:
    assert machine._why_lost(KERNEL, report, None) == ""


def test_no_status_is_lost(report: Path) -> None:
    (report / "status").unlink()
    assert machine._why_lost(KERNEL, report, None) == "it ended without an exit status"


def test_time_ran_out_is_lost(report: Path) -> None:
    (report / "status").unlink()
    assert machine._why_lost(KERNEL, report, 60.0) == "no exit status after 60 s"


def test_another_kernel_is_lost(report: Path) -> None:
    (report / "release").write_text("6.18.0\n")
    assert machine._why_lost(KERNEL, report, None) == "it booted 6.18.0"
