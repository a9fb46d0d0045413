"""Odd files, links, folders and file systems: each is named or passed over, and none ends the source."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import watchfiles

from ebpfnet.model.facts import Change, Kind
from ebpfnet.watch import manifests
from ebpfnet.watch.manifests import ManifestSource, list_files, parse
from tests.unit.watch.test_manifests import A, told

SERVICE = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: %s}]}\n"


@pytest.mark.parametrize(
    "text",
    [
        "when: !!timestamp foo\n",
        "number: !!int ''\n",
        "truth: !!bool maybe\n",
        SERVICE % ("0x" + "f" * 5000),
    ],
    ids=["timestamp", "int", "bool", "number"],
)
def test_what_the_parser_stumbles_over_names_the_file(text: str):
    content = parse("odd.yaml", text.encode())
    [problem] = content.problems
    assert (problem.ref.kind, problem.ref.name) == (Kind.FILE, "odd.yaml")
    assert problem.reason


def test_a_link_to_a_name_that_can_t_be_is_no_file(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(A)
    (tmp_path / "b.yaml").symlink_to("x" * 300)
    assert list_files(tmp_path) == [tmp_path / "a.yaml"]
    assert told(ManifestSource(tmp_path, settle_s=0).scan()) == ["+a"]


def test_a_folder_that_vanishes_while_it_is_listed_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.yaml").write_text(A)
    (tmp_path / "folder").mkdir()
    real = os.scandir

    def vanishing(path):
        if str(path) == str(tmp_path / "folder"):
            Path(path).rmdir()
        return real(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert list_files(tmp_path) == [tmp_path / "a.yaml"]


@contextlib.contextmanager
def following(folder: Path) -> Iterator[queue.Queue[list[Change]]]:
    """Follow a folder in a thread; gives what is delivered."""
    delivered: queue.Queue[list[Change]] = queue.Queue()
    stop = threading.Event()
    thread = threading.Thread(target=ManifestSource(folder).run, args=(delivered.put, stop))
    thread.start()
    try:
        yield delivered
    finally:
        stop.set()
        thread.join(timeout=10)
    assert not thread.is_alive()


def test_without_notifications_changes_are_seen_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_instance(*_: object, **__: object) -> Iterator[set[object]]:
        raise RuntimeError("Too many open files (os error 24)")

    monkeypatch.setattr(watchfiles, "watch", no_instance)
    monkeypatch.setattr(manifests, "RESCAN_MS", 20)
    with following(tmp_path) as delivered:
        assert told(delivered.get(timeout=10)) == ["synced"]
        (tmp_path / "a.yaml").write_text(A)
        assert told(delivered.get(timeout=10)) == ["+a"]
