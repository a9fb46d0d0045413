"""Odd files, links, folders and file systems: each is named or passed over, and none ends the source."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import watchfiles

from ebpfnet.maps import dump
from ebpfnet.model.facts import Change, Kind, Synced, Upsert
from ebpfnet.reconcile.reconciler import Reconciler
from ebpfnet.watch import files, manifests
from ebpfnet.watch.manifests import ManifestSource, list_files, parse
from tests.cluster import Clock, memory_tables, settle
from tests.unit.watch.test_manifests import A, B, told

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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.yaml", b"[" * 100_000),
        ("deep.yaml", b"{a: " * 100_000),
        ("deep.yaml", b"- " * 100_000),
        ("deep.yaml", A.encode() + b"---\n" + b"? " * 100_000),
        ("deep.json", b"[" * 100_000),
        ("deep.json", b'{"a":' * 100_000),
    ],
)
def test_what_is_nested_deeper_than_anything_is_refused_by_name(name: str, text: bytes):
    content = parse(name, text)
    [problem] = content.problems
    assert problem.ref.name == name
    assert content.broken
    assert name.endswith("json") or "nested deeper" in problem.reason


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
        thread.join(timeout=60)
    assert not thread.is_alive()


def test_without_notifications_changes_are_seen_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_instance(*_: object, **__: object) -> Iterator[set[object]]:
        raise RuntimeError("Too many open files (os error 24)")

    monkeypatch.setattr(watchfiles, "watch", no_instance)
    monkeypatch.setattr(manifests, "RESCAN_MS", 20)
    with following(tmp_path) as delivered:
        assert told(delivered.get(timeout=60)) == ["synced"]
        (tmp_path / "a.yaml").write_text(A)
        assert told(delivered.get(timeout=60)) == ["+a"]


def test_files_that_never_rest_hold_up_no_others(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(A)
    stop = threading.Event()

    def churn() -> None:
        for number in itertools.count():
            if stop.wait(0.002):
                return
            (tmp_path / "new").write_text(f"kind: Node\nmetadata: {{name: churn-{number}}}\n")
            (tmp_path / "new").rename(tmp_path / f"churn-{number % 3}.yaml")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with following(tmp_path) as delivered:
            began = time.monotonic()
            first = told(delivered.get(timeout=60))
            assert "+a" in first
            assert first[-1].startswith("synced")
            (tmp_path / "b.yaml").write_text(B)
            while not any(isinstance(each, Upsert) and each.fact.ref.name == "b" for each in delivered.get(timeout=60)):
                pass
            assert time.monotonic() - began < 60
    finally:
        stop.set()
        thread.join(timeout=60)


BROKEN = "kind: Node\nmetadata: {name: ["
REFUSED = "kind: Service\nmetadata: {name: web}\nspec: {clusterIP: x}\n"


@pytest.mark.parametrize("text", [BROKEN, "", "# lost\n", REFUSED, "metadata: {name: x}\n"])
def test_the_first_list_is_not_complete_until_all_of_it_was_read_well(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(A)
    (tmp_path / "b.yaml").write_text(text)
    with following(tmp_path) as delivered:
        assert told(delivered.get(timeout=60))[-1] == "synced in part"
        (tmp_path / "b.yaml").write_text(B)
        seen = told(delivered.get(timeout=60))
        assert "+b" in seen
        assert seen[-1] == "synced"
        (tmp_path / "c.yaml").write_text(BROKEN)
        assert told(delivered.get(timeout=60)) == ["!c.yaml"]


def test_a_file_that_can_t_be_read_and_is_removed_hides_nothing(tmp_path: Path):
    (tmp_path / "b.yaml").write_text(BROKEN)
    with following(tmp_path) as delivered:
        assert told(delivered.get(timeout=60))[-1] == "synced in part"
        (tmp_path / "b.yaml").write_text("")
        assert told(delivered.get(timeout=60)) == ["ok b.yaml", "!b.yaml"]
        (tmp_path / "b.yaml").unlink()
        assert told(delivered.get(timeout=60)) == ["ok b.yaml", "synced"]


def test_what_the_tables_hold_of_a_file_stays_over_a_restart_that_can_t_read_it(tmp_path: Path):
    tables = memory_tables()
    (tmp_path / "web.yaml").write_text(SERVICE % 80)
    Reconciler(tables, "node-a").apply([*ManifestSource(tmp_path, settle_s=0).scan(), Synced()])
    before = dump.summary(tables)
    assert len(before) == 2
    (tmp_path / "web.yaml").write_text(BROKEN)
    source = ManifestSource(tmp_path, settle_s=0)
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.apply([*source.scan(), Synced(complete=source.complete)])
    assert dump.summary(tables) == before
    assert [problem.ref.kind for problem in reconciler.problems] == [Kind.FILE]
    (tmp_path / "web.yaml").unlink()
    reconciler.apply([*source.scan(), Synced(complete=source.complete)])
    settle(reconciler, clock)
    assert dump.summary(tables) == []


@pytest.mark.parametrize("where", ["file", "folder", "all"])
def test_what_can_t_be_looked_at_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.yaml").write_text(A)
    (tmp_path / "more" / "b.yaml").write_text(B)
    source = ManifestSource(tmp_path, settle_s=0)
    assert told(source.scan()) == ["+a", "+b"]
    lost = {"file": tmp_path / "a.yaml", "folder": tmp_path / "more", "all": tmp_path}[where]
    real = files._look, os.scandir

    def look(entry, found):
        if entry.path == str(lost) and where == "file":
            files._note(found, entry.path, OSError(errno.ESTALE, "Stale file handle"))
            return None
        return real[0](entry, found)

    def scandir(path):
        if str(path) == str(lost):
            raise OSError(errno.EIO, "Input/output error")
        return real[1](path)

    with monkeypatch.context() as away:
        away.setattr(files, "_look", look)
        away.setattr(os, "scandir", scandir)
        assert told(source.scan()) == [f"!{lost.name}"]
        assert source.scan() == []
        assert not source.complete
    assert told(source.scan()) == [f"ok {lost.name}"]
    assert source.complete


def test_a_file_that_could_not_be_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.yaml").write_text(A)
    source = ManifestSource(tmp_path, settle_s=0)

    def lost(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as away:
        away.setattr(Path, "read_bytes", lost)
        assert told(source.scan()) == ["!a.yaml"]
    assert set(told(source.scan())) == {"+a", "ok a.yaml"}
    assert source.complete


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path: Path):
    """As kubelet mounts a ConfigMap: files are links through ``..data`` to a hidden folder."""
    volume, folder = tmp_path / "volume", tmp_path / "folder"
    (volume / "..2026").mkdir(parents=True)
    (volume / "..2026" / "a.yaml").write_text(A)
    (volume / "..data").symlink_to("..2026")
    (volume / "a.yaml").symlink_to("..data/a.yaml")
    folder.mkdir()
    (folder / "linked").symlink_to(volume)
    (folder / "back").symlink_to(folder)
    source = ManifestSource(folder, settle_s=0)
    assert told(source.scan()) == ["+a"]
    (volume / "..2027").mkdir()
    (volume / "..2027" / "a.yaml").write_text(B)
    (volume / "..new").symlink_to("..2027")
    (volume / "..new").rename(volume / "..data")
    assert told(source.scan()) == ["-a", "+b"]


def test_what_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(A.replace("a}", f"a{number}}}"))
    source = ManifestSource(tmp_path, settle_s=0)
    assert len(source.scan()) == 1000
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert source.scan() == []
