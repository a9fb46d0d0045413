"""The manifests of a lab: copied into its folder, read from there."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ebpfnet.exits import BadInput
from ebpfnet.lab import topology
from ebpfnet.model.facts import Kind, Node, Pod, Problem, Refused, Service, Upsert
from ebpfnet.watch import manifests

DEMO = Path(__file__).parent / "demo"
"""Packaged manifests: two dual-stack nodes, seven pods, a handful of services."""


_ADDRESSES = "status.podIPs"


class ManifestsError(BadInput):
    """The manifests can't be used as a lab's cluster."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a lab needs to know of its manifests; ``warnings`` are what the agents will also complain about.

    ``left_out`` are the pods that should have a wire and get none.
    """

    plan: topology.Plan
    warnings: tuple[Problem, ...]
    left_out: tuple[Problem, ...]


def read(lab: str, source: Path, before: topology.Plan | None = None) -> Contents:
    """Read a file or folder; raises ``BadInput``, naming object and field, when it makes no cluster.

    A pod that can't be read stays as it was in the plan before.
    """
    nodes: list[Node] = []
    pods: list[Pod] = []
    services: list[Service] = []
    warnings: list[Problem] = []
    refused: list[Problem] = []
    for change in manifests.read([source]):
        match change:
            case Upsert(Node() as node):
                nodes.append(node)
            case Upsert(Pod() as pod):
                pods.append(pod)
            case Upsert(Service() as service):
                services.append(service)
            case Refused(problem, partial):
                # A file that can't be read may hold pods: to go on without them would take their wires away.
                if problem.ref.kind in (Kind.NODE, Kind.FILE) and not partial:
                    raise ManifestsError(str(problem))
                if problem.ref.kind == Kind.POD and not partial:
                    refused.append(problem)
                elif problem.ref.kind != Kind.POD or problem.field != _ADDRESSES:  # a missing wire is told of below
                    warnings.append(problem)
            case _:
                pass
    try:
        names = {f"{problem.ref.namespace}/{problem.ref.name}" for problem in refused}
        kept = [pod for pod in before.pods if pod.full_name in names] if before else []
        found = topology.plan(lab, nodes, pods, kept, services)
        return Contents(found.plan, tuple(warnings), (*refused, *found.left_out))
    except topology.TopologyError as error:
        raise ManifestsError("\n".join([str(error), *map(str, warnings)])) from error


def cluster_ips(source: Path) -> dict[str, tuple[str, ...]]:
    """Return the addresses of the services in a file or folder, by NAMESPACE/NAME."""
    return {
        f"{service.ref.namespace}/{service.ref.name}": tuple(map(str, service.cluster_ips))
        for change in manifests.read([source])
        if isinstance(change, Upsert) and isinstance(service := change.fact, Service)
    }


def balancer_ips(source: Path) -> dict[str, tuple[str, ...]]:
    """Return the load balancer addresses of the services in a file or folder, by NAMESPACE/NAME."""
    return {
        f"{service.ref.namespace}/{service.ref.name}": tuple(map(str, service.load_balancer_ips))
        for change in manifests.read([source])
        if isinstance(change, Upsert) and isinstance(service := change.fact, Service)
    }


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change each object of a YAML file, and put the new file in the old one's place in one step."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    for document in documents:
        change(document)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    draft.replace(path)


def keep(manifests_of_lab: Path, instead: Path) -> Path | None:
    """Copy the manifests of a lab beside themselves, unless those that are to come are the same; returns where."""
    if _texts(manifests_of_lab) in ({}, _texts(instead)):
        return None
    numbers = itertools.count(1)
    target = next(place for number in numbers if not (place := manifests_of_lab.with_suffix(f".{number}")).exists())
    copy(manifests_of_lab, target)
    return target


def _texts(source: Path) -> dict[Path, bytes]:
    root = source if source.is_dir() else source.parent
    return {file.relative_to(root): file.read_bytes() for file in manifests.list_files(source)}


def copy(source: Path, target: Path) -> None:
    """Make ``target`` hold the manifests of ``source`` (a file or a folder) and nothing else."""
    files = manifests.list_files(source)
    root = source if source.is_dir() else source.parent
    wanted = {file.relative_to(root) for file in files}
    for old in manifests.list_files(target):
        if old.relative_to(target) not in wanted:
            old.unlink()
    for relative in sorted(wanted):
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.copyfile(root / relative, draft)
        draft.replace(place)
