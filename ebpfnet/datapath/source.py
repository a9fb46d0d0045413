"""The C of the datapath as one text.

BCC rewrites map operations in the main file only; in an included header they compile and then fail in the verifier
(``b_frontend_action.cc: EndSourceFileAction``). So our own ``#include "…"`` are put in place, once each, and ``#line``
keeps the compiler's messages true.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

INCLUDE = re.compile(r'^#include "([^"]+)"')


def bpf_dir() -> Path:
    """Return the folder of the C sources: inside the installed package, or beside it in a checkout."""
    packaged = Path(__file__).parent.parent / "_bpf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent.parent / "bpf"


def flatten(main: Path) -> str:
    """Return ``main`` with its own includes put in place; raises ``FileNotFoundError`` naming a missing one.

    As in C, an include is looked for beside the file that names it.
    """
    return _expand(main.resolve(), main.resolve().parent, {main.resolve()})


def _expand(path: Path, root: Path, seen: set[Path]) -> str:
    name = os.path.relpath(path, root)
    out = [f'#line 1 "{name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if match is None:
            out.append(line)
            continue
        included = (path.parent / match[1]).resolve()
        if included not in seen:
            seen.add(included)
            out.append(_expand(included, root, seen))
            out.append(f'#line {number + 1} "{name}"')
    return "\n".join(out)
