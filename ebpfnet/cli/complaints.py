"""What agents refused of services, and know of policies; one that is not there has no say, and holds up nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebpfnet.cli.instances import Instance
from ebpfnet.exits import NotRunning

_PATIENCE_S = 0.5
_KIND = "Service "


def of_services(instance: Instance) -> dict[str, list[str]]:
    """Return the problems of each service, by NAMESPACE/NAME; nothing when the agent does not answer."""
    from ebpfnet.status import ask

    try:
        problems = ask(instance.run, timeout_s=_PATIENCE_S).get("problems", [])
    except NotRunning:
        return {}
    found: dict[str, list[str]] = {}
    for problem in problems:
        if problem["ref"].startswith(_KIND):
            text = ": ".join(part for part in (problem["field"], problem["reason"]) if part)
            found.setdefault(problem["ref"].removeprefix(_KIND), []).append(text)
    return found


def counted(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a list with the number of its problems; `get` names them."""
    return {**row, "problems": len(row["problems"]) or None}


def of_policies(instance: Instance) -> dict[str, dict[str, Any]] | None:
    """Return what the agent says of each policy, by ``KIND [NAMESPACE/]NAME``; None when it does not answer."""
    from ebpfnet.status import ask

    try:
        listed = ask(instance.run, "policies", timeout_s=_PATIENCE_S * 4).get("policies", [])
    except NotRunning:
        return None
    return {each["policy"]: each for each in listed}
