"""What the loopback device must let in: answers whose source is an address of this node.

A process that calls its own node's NodePort is answered by a pod, or by another node; the answer, translated, has the
node's address as its source and comes in at ``lo``, put there by a program and not sent by the stack. The stack takes
an own address as a source from outside for forged ("martian", Linux net/ipv4/fib_frontend.c __fib_validate_source)
unless the device has ``accept_local``; nobody outside can send to ``lo``. A strict ``rp_filter`` would drop it as well,
for the address is another device's; of the device's and everybody's value the higher one counts, so a loose one (2) on
``lo`` makes it loose there. IPv6 knows neither.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

IFINDEX = 1
"""Of ``lo``, in every network namespace (Linux include/net/flow.h LOOPBACK_IFINDEX)."""

FOLDER = Path("/proc/sys/net/ipv4/conf/lo")
WANTED = {"accept_local": "1", "rp_filter": "2"}
_NAME = "loopback.json"


def admit(run: Path) -> None:
    """Let answers in; what was set before is kept in the run directory, for ``restore``.

    Where the settings can't be changed, all else works: a process that calls its own node's NodePort gets no answer.
    """
    try:
        before = {name: (FOLDER / name).read_text().strip() for name in WANTED}
        if before == WANTED:
            return
        _keep(run / _NAME, before)
        for name, value in WANTED.items():
            (FOLDER / name).write_text(value)
    except OSError as error:
        log.warning("processes of this node will not be answered by its own NodePorts over IPv4: %s", error)


def _keep(place: Path, before: dict[str, str]) -> None:
    """Note what was set before; without room for that, clean-up will leave the settings as we need them."""
    if place.exists():
        return
    try:
        place.write_text(json.dumps(before))
    except OSError as error:
        log.warning("keep lo's former settings: %s: %s", place, error.strerror)


def admitted(run: Path) -> Path | None:
    """Return where the settings from before are kept, if they are."""
    place = run / _NAME
    return place if place.exists() else None


def restore(run: Path) -> None:
    """Set back what ``admit`` changed; a file that is half written changes nothing. Raises ``OSError``."""
    place = run / _NAME
    try:
        before = json.loads(place.read_text())
    except (FileNotFoundError, ValueError):
        before = {}
    for name in WANTED:
        if isinstance(before, dict) and str(before.get(name, "")).isdigit():
            (FOLDER / name).write_text(str(before[name]))
    place.unlink(missing_ok=True)
