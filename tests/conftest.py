"""Hooks of every rung.

With ``EBPFNET_NO_SKIP=1``, as in CI and in ``make vm``, what is skipped has failed.
``EBPFNET_TEST_PROCESSES=FILE`` collects the ids of the test processes: what they make is named after them,
and CI looks for what outlives them.
"""

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure() -> None:
    # A shell's background job ignores it, and so would every command that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if processes := os.environ.get("EBPFNET_TEST_PROCESSES"):
        with Path(processes).open("a") as file:
            print(os.getpid(), file=file)


def _refuse_skip(report: Report) -> Report:
    """Turn a skip into a failure that tells its reason; an expected failure stays what it is."""
    if os.environ.get("EBPFNET_NO_SKIP") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"EBPFNET_NO_SKIP=1, and this was skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))
