"""Run the packet tests and a cluster test under other kernels: ``python -m vm.run [SERIES …]``, by default all."""

from __future__ import annotations

import argparse
import sys

from vm import kernels, machine

TESTS = ("tests/prog", "tests/netns/test_services.py::test_tcp")
TIMEOUT_S = 1200.0
TAIL = 200
"""Lines shown of what a failed or lost machine printed last."""

BUILD = machine.PROJECT / "build" / "vm"


def run_one(series: str, tests: list[str], timeout_s: float) -> machine.Outcome:
    """Run the tests under one kernel and print how it went, with the failures' text."""
    kernel = kernels.kernel(series, BUILD)
    report = BUILD / "reports" / series
    report.mkdir(parents=True, exist_ok=True)
    print(f"vm: {kernel.release}: pytest {' '.join(tests)}", flush=True)
    outcome = machine.run(kernel, tests, report, timeout_s)
    if not outcome.good:
        log = report / ("console.log" if outcome.lost else "pytest.log")
        print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]))
    print(f"vm: {outcome}", flush=True)
    return outcome


def main() -> int:
    """Run, report, and return the exit status: 0 only when every kernel gave a result and every test passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", nargs="*", default=list(kernels.SERIES), metavar="SERIES")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=list(TESTS), help="the rest is for pytest")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for each machine")
    options = parser.parse_args()
    try:
        outcomes = [run_one(series, options.tests, options.timeout) for series in options.series]
    except kernels.NoKernel as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(max(outcome.failed, not outcome.good) for outcome in outcomes)
    print("\nkernel under test", *outcomes, f"{passed} passed, {failed} failed", sep="\n")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
