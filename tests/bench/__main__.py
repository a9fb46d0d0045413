"""``python -m tests.bench [GROUP…]``: measure, print a table, write ``build/bench.json``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from tests.bench.figures import Figure, store, table

GROUPS = ("packet", "judging", "connect", "nodeport", "sync", "consistent", "policy", "kube", "simulate")
RESULT = Path("build/bench.json")


def main() -> None:
    """Run the groups named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("group", nargs="*", help=f"of {', '.join(GROUPS)}; none is all")
    groups = parser.parse_args().group or GROUPS
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if os.geteuid() != 0:
        sys.exit("bench: this needs root (eBPF and network namespaces)")
    figures: list[Figure] = []
    for group in groups:
        begin = time.monotonic()
        found: list[Figure] = importlib.import_module(f"tests.bench.{group}").run()
        print(f"{table(found)}\n{group}: {time.monotonic() - begin:.0f} s\n", flush=True)
        figures += found
    store(figures, RESULT)
    bounded = [figure for figure in figures if figure.holds is not None]
    missed = [figure for figure in bounded if not figure.holds]
    print(f"{len(bounded) - len(missed)} of {len(bounded)} bounds hold; written to {RESULT}")
    for figure in missed:
        beside = f" beside {figure.rival}" if figure.rival else ""
        print(f"  missed: {figure.name}{beside} ({figure.bound})")


if __name__ == "__main__":
    main()
