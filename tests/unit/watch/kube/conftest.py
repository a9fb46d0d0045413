"""A source that follows the test API server, and what it has told so far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ebpfnet.model.facts import Accepted, Change, Delete, Fact, PeersKnown, Problem, Ref, Refused, Synced, Upsert
from ebpfnet.watch.kube import connection, reflector
from ebpfnet.watch.kube.source import KubeSource, peer_resources, resources
from tests.apiserver.server import ApiServer
from tests.apiserver.tls import write_kubeconfig

NODE = "node-a"


class Followed:
    """What a source delivered: facts as they now are, problems, and how often everything was in sync."""

    def __init__(self, source: KubeSource) -> None:
        self.source = source
        self.facts: dict[Ref, Fact] = {}
        self.problems: dict[tuple[Ref, str], Problem] = {}
        self.synced = 0
        self.complete = False
        self.upserts: list[Ref] = []
        self.deletes: list[Ref] = []
        self.batches: list[int] = []
        self.all: list[Change] = []
        self._changed = threading.Condition()

    def take(self, changes: list[Change], read_at: float = 0.0) -> None:
        with self._changed:
            self.batches.append(len(changes))
            self.all += changes
            for change in changes:
                self._one(change)
            self._changed.notify_all()

    def _one(self, change: Change) -> None:
        match change:
            case Upsert(fact):
                self.facts[fact.ref] = fact
                self.upserts.append(fact.ref)
            case Delete(ref):
                self.facts.pop(ref, None)
                self.deletes.append(ref)
            case Refused(problem):
                self.problems[problem.ref, problem.field] = problem
            case Accepted(ref):
                self.problems = {key: problem for key, problem in self.problems.items() if key[0] != ref}
            case Synced(complete):
                self.synced += 1
                self.complete = complete

    def wait(self, condition: Callable[[Followed], object], seconds: float = 20) -> None:
        """Wait until a condition of what was told holds."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), seconds):
                raise TimeoutError(f"not within {seconds} s: {self.facts.keys()} {self.problems} {self.source.stats}")

    def known(self) -> list[bool]:
        """Return what was said of other nodes' pods, in order."""
        return [change.known for change in self.all if isinstance(change, PeersKnown)]

    def names(self) -> set[str]:
        return {ref.name for ref in self.facts}

    def said(self) -> str:
        return "\n".join(str(problem) for problem in self.problems.values())


Follow = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as api:
        yield api


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "FIRST_S", 0.01)
    monkeypatch.setattr(reflector, "MAX_S", 0.05)
    monkeypatch.setattr(reflector, "ABSENT_S", 0.02)


@pytest.fixture
def follow(server: ApiServer, tmp_path: Path) -> Follow:
    """Return a context manager that follows the server, the agent's resources or those whose plurals are given."""

    @contextmanager
    def running(*plurals: str, idle_s: float = 20.0, urls: tuple[str, ...] = (), **more: Any) -> Iterator[Followed]:
        config = tmp_path / "kubeconfig"
        if not config.exists():
            write_kubeconfig(config, server.url)
        api = connection.Api(lambda: connection.load(config), urls)
        chosen = more.get("resources") or [each for each in resources(NODE) if not plurals or each.plural in plurals]
        source = KubeSource(api, NODE, chosen, () if plurals else peer_resources(NODE), idle_s=idle_s)
        told = Followed(source)
        stop = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                source.run(told.take, stop)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield told
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()
            assert not failed, failed

    return running
