"""A folder of YAML or JSON as the cluster: read whole, then followed.

A file is read again when its inode, size or time changed; what it held before and no more is deleted, unless another
file holds it. A file that can't be parsed (half written, or wrong) keeps the objects of its last good version, and is
named. Editors that write beside and rename are seen like any other change, their temporary files are not.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from ebpfnet.exits import BadInput
from ebpfnet.model.facts import Accepted, Change, Delete, Fact, Kind, Problem, Ref, Refused, Synced, Upsert
from ebpfnet.watch.decode import decode
from ebpfnet.watch.files import walk
from ebpfnet.watch.source import HIDES, Deliver, Stats
from ebpfnet.watch.words import type_name

log = logging.getLogger(__name__)

RESCAN_MS = 1000  # also without a notification: network file systems send none, and none comes while we scan
RARELY = 50  # without a notification no more than a fiftieth of the time is spent on looking
DEBOUNCE_MS = 20
DEPTH_MAX = 256  # of lists and mappings; Kubernetes' own objects stay below 30
PATIENCE_S = 0.5  # files that never rest hold up the others no longer than this
FIRST_PATIENCE_S = 3.0  # and the first list of all no longer than this
SETTLE_S = 0.03  # a file that was written to less long ago may be half of what it will be, and parse
Stamp = tuple[int, int, int]
UNREAD = (0, 0, 0)
POLICIES = {Kind.NETWORK_POLICY, Kind.CLUSTER_NETWORK_POLICY}


class Content(NamedTuple):
    """What one file says: facts by object, problems (of objects, or of the file itself)."""

    facts: dict[Ref, Fact]
    problems: tuple[Problem, ...]
    broken: bool = False
    empty: bool = False


def _documents(name: str, text: bytes) -> Iterator[Any]:
    if name.endswith(".json"):
        yield msgspec.json.decode(text)
        return
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _check_depth(yaml.parse(text, Loader=loader))
    yield from yaml.load_all(text, Loader=loader)


def _check_depth(events: Iterator[yaml.Event]) -> None:
    """Refuse what is nested so deep that composing it, which goes down by recursion in C, might end the process."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                mark: Any = event.start_mark
                raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEPTH_MAX}", problem_mark=mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _objects(document: object) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a document; ``List`` kinds are opened, empty documents are nothing."""
    if document is None:
        return
    if isinstance(document, Mapping):
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list | None):
            for item in items or ():
                # Items of a typed list may leave their kind to it (an API server's answer does).
                kind = str(document["kind"]).removesuffix("List")
                yield from _objects({"kind": kind, **item} if isinstance(item, Mapping) and kind else item)
            return
        yield document
        return
    raise ValueError(f"an object is expected, not {type_name(document)}")


def parse(name: str, text: bytes, proxy_name: str = "") -> Content:
    """Return what a file's text says; a text that can't be parsed is ``broken`` and says only that."""
    facts: dict[Ref, Fact] = {}
    problems: list[Problem] = []
    here = Ref(Kind.FILE, "", name)
    try:
        items = [item for document in _documents(name, text) for item in _objects(document)]
        decoded = [decode(item, proxy_name) for item in items]
    except Exception as error:  # PyYAML's constructors raise whatever they stumble over: IndexError, KeyError, ...
        mark = getattr(error, "problem_mark", None)
        field = f"line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or (str(error) or type(error).__name__).splitlines()[0]
        return Content({}, (Problem(here, field, reason),), broken=True)
    for found in decoded:
        # What has no kind is no object that could be named: the file is.
        problems += [Problem(here, p.field, p.reason) if p.ref.kind == Kind.FILE else p for p in found.problems]
        if found.fact is not None:
            if found.fact.ref in facts:
                problems.append(Problem(found.fact.ref, "metadata.name", f"stands twice in {name}; the first is used"))
                continue
            facts[found.fact.ref] = found.fact
    return Content(facts, tuple(problems), empty=not items)


def list_files(path: Path) -> list[Path]:
    """Return the manifest files at or below ``path``, sorted; hidden and editors' files are none."""
    return [path] if path.is_file() else sorted(map(Path, walk(path).files))


def merge(contents: Mapping[str, Content]) -> tuple[dict[Ref, Fact], list[Problem]]:
    """Put files together; an object in two of them is taken from the first by path, and named."""
    facts: dict[Ref, Fact] = {}
    home: dict[Ref, str] = {}
    problems: list[Problem] = []
    for path in sorted(contents):
        problems += contents[path].problems
        for ref, fact in contents[path].facts.items():
            if ref in facts:
                problems.append(
                    Problem(ref, "metadata.name", f"stands in {home[ref]} and in {path}; the first is used")
                )
                continue
            facts[ref], home[ref] = fact, path
    return facts, problems


def _same(before: Fact | None, now: Fact) -> bool:
    """Say whether nothing is to be told: of a policy the generation, too, which somebody may wait for."""
    return before == now and getattr(before, "generation", 0) == getattr(now, "generation", 0)


def read(paths: Iterable[Path | str], proxy_name: str = "") -> list[Change]:
    """Read files and folders (``-``: standard input) once: facts, problems and a ``Synced`` at the end.

    Raises ``BadInput`` for a path that is not there; what can't be parsed comes as ``Refused``.
    """
    contents: dict[str, Content] = {}
    for path in map(Path, paths):
        if str(path) == "-":
            contents["-"] = parse("standard input", sys.stdin.buffer.read(), proxy_name)
            continue
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder")
        for file in list_files(path):
            contents[str(file)] = parse(str(file), file.read_bytes(), proxy_name)
    facts, problems = merge(contents)
    out: list[Change] = [Upsert(fact) for fact in facts.values()]
    out += [Refused(problem, partial=problem.ref in facts) for problem in problems]
    return [*out, Synced()]


class ManifestSource:
    """Follows a folder. ``scan`` compares it with what was delivered; ``run`` scans whenever something moves.

    A file is read when it has not been written to for ``settle_s`` seconds; ``unsettled`` says that one has. One that
    never rests is read when it was replaced (whoever renames, has written before). ``complete`` says that no file or
    object is refused that was never read well. Services of another proxy than ``proxy_name`` are left to that one.
    """

    def __init__(self, folder: Path, settle_s: float = SETTLE_S, node: str = "", proxy_name: str = "") -> None:
        self.folder = folder
        self._proxy_name = proxy_name
        self._node = Ref(Kind.NODE, "", node) if node else None
        self.settle_s = settle_s
        self.unsettled = False
        self.complete = False
        self._complete_told = False
        self._unknown: set[str] = set()
        self._restless: dict[str, tuple[float, int]] = {}
        self._hidden = False
        self._looked = False
        self._took_s = 0.0
        self.stats = [Stats(str(folder))]
        self._stamps: dict[str, Stamp] = {}
        self._contents: dict[str, Content] = {}
        self._failed: tuple[Problem, ...] = ()
        self._facts: dict[Ref, Fact] = {}
        self._problems: dict[Ref, tuple[Problem, ...]] = {}

    def scan(self) -> list[Change]:
        """Return what changed since the last scan."""
        began = time.monotonic()
        try:
            return self._scan()
        finally:
            self._took_s = time.monotonic() - began

    def _scan(self) -> list[Change]:
        told = self.stats[0]
        told.lists += 1
        told.heard_at = time.time()
        here = Ref(Kind.FILE, "", str(self.folder))
        if not os.path.isdir(self.folder):  # noqa: PTH112  # unmounted, or being replaced: nothing is deleted for that
            self.complete = False
            problem = Problem(here, "", "not there; everything stays as it was")
            return self._tell({here: (problem,)}, keep=True)
        before = (self._failed, set(self._contents))
        changed = self._changed()
        for path in changed:
            self._reread(path)
        if (
            self._looked
            and not changed
            and before == (self._failed, set(self._contents))
            and here not in self._problems
        ):
            self.complete = self._knows_all()
            return []
        self._looked = True
        facts, problems = merge(self._contents)
        problems += self._failed
        grouped: dict[Ref, tuple[Problem, ...]] = {}
        for problem in problems:
            grouped[problem.ref] = (*grouped.get(problem.ref, ()), problem)
        # An object that is refused where it stands keeps its last good version.
        kept = {ref: self._facts[ref] for ref in grouped if ref in self._facts and ref not in facts}
        facts |= kept
        if self._node and self._node not in facts:
            text = "no such node in the manifests; what does --node-name say?"
            grouped.setdefault(self._node, (Problem(self._node, "metadata.name", text),))
        gone = [Delete(ref) for ref in self._facts if ref not in facts]
        # Policies go when those that take their place are there: between the two nobody may be open to everybody.
        out: list[Change] = [each for each in gone if each.ref.kind not in POLICIES]
        out += [Upsert(fact) for ref, fact in facts.items() if not _same(self._facts.get(ref), fact)]
        out += [each for each in gone if each.ref.kind in POLICIES]
        self._hidden = any(ref.kind in HIDES - {Kind.FILE} and ref not in facts for ref in grouped)
        self._facts = facts
        self.complete = self._knows_all()
        told.objects = len(facts)
        told.events += len(out)
        return out + self._tell(grouped)

    def _knows_all(self) -> bool:
        return not (self._hidden or self._unknown or self._failed or UNREAD in self._stamps.values())

    def _tell(self, now: dict[Ref, tuple[Problem, ...]], *, keep: bool = False) -> list[Change]:
        out: list[Change] = []
        for ref, before in self._problems.items():
            if before != now.get(ref) and not keep:
                out.append(Accepted(ref))
        for ref, problems in now.items():
            if self._problems.get(ref) != problems:
                out += [Refused(problem, partial=ref in self._facts) for problem in problems]
        self._problems = self._problems | now if keep else now
        return out

    def _changed(self) -> list[str]:
        stamps: dict[str, Stamp] = {}
        self.unsettled = False
        now = time.time()
        listing = walk(self.folder)
        for path, status in listing.files.items():
            stamps[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._stamps.get(path) == stamps[path] or not 0 <= now - status.st_mtime < self.settle_s:
                self._restless.pop(path, None)
            elif not self._replaced(path, status.st_ino):
                stamps[path] = self._stamps.get(path, UNREAD)
                self.unsettled = True
        if listing.failed:
            stamps = {path: stamp for path, stamp in self._stamps.items() if listing.covers(path)} | stamps
        self._failed = tuple(
            Problem(Ref(Kind.FILE, "", path), "(file)", f"{error.strerror}; what it held stays")
            for path, error in sorted(listing.failed.items())
        )
        changed = [path for path, stamp in stamps.items() if stamp not in {self._stamps.get(path), UNREAD}]
        for path in self._contents.keys() - stamps.keys():
            del self._contents[path]
            self._unknown.discard(path)
        self._stamps = stamps
        self._restless = {path: seen for path, seen in self._restless.items() if path in stamps}
        return changed

    def _replaced(self, path: str, inode: int) -> bool:
        """Tell whether a file that never rests is another one each time."""
        now = time.monotonic()
        since, before = self._restless.setdefault(path, (now, inode))
        self._restless[path] = (since, inode)
        return now - since > PATIENCE_S and inode != before

    def _reread(self, path: str) -> None:
        try:
            content = parse(path, Path(path).read_bytes(), self._proxy_name)
        except OSError as error:
            problem = Problem(Ref(Kind.FILE, "", str(path)), "", error.strerror or "")
            content = Content({}, (problem,), broken=True)
            self._stamps[path] = UNREAD  # once more at the next look
        before = self._contents.get(path)
        never = before is None or path in self._unknown
        if content.empty and (not self._complete_told if before is None or never else before.facts):
            # An editor truncates before it writes. Whoever means it removes the file.
            problem = Problem(Ref(Kind.FILE, "", str(path)), "", "empty; remove it to delete what it held")
            content = Content({}, (problem,), broken=True)
        if content.broken and path in self._contents:
            content = content._replace(facts=self._contents[path].facts)
        self._contents[path] = content
        if never and (content.broken or any(problem.ref.kind == Kind.FILE for problem in content.problems)):
            self._unknown.add(path)
        else:
            self._unknown.discard(path)

    def want(self, kinds: Collection[Kind]) -> None:
        """Everything in the folder is told anyway."""

    def run(self, deliver: Deliver, stop: threading.Event) -> None:
        """Deliver the folder, ``Synced``, and every change until ``stop`` is set."""
        changes = self._settled(stop, FIRST_PATIENCE_S)
        self._complete_told = self.complete
        deliver([*changes, Synced(complete=self.complete)])
        self.stats[0].state = "watching"
        rested = time.monotonic()
        for moved in self._moves(stop):
            if moved or time.monotonic() - rested > RARELY * self._took_s:
                self._pass_on(deliver, stop)
                rested = time.monotonic()

    def _moves(self, stop: threading.Event) -> Iterator[bool]:
        """Yield True when something moved, False now and then: also without a folder or inotify."""
        from watchfiles import watch  # 40 ms of import, which only an agent needs

        options: dict[str, Any] = {"yield_on_timeout": True, "raise_interrupt": False}
        options |= {"debounce": DEBOUNCE_MS, "step": DEBOUNCE_MS // 2, "rust_timeout": RESCAN_MS}
        while not stop.is_set():
            try:
                for moved in watch(self.folder, stop_event=stop, **options):
                    yield bool(moved)
                    if not os.path.isdir(self.folder):  # noqa: PTH112  # False, too, when it can't be looked at
                        break
            except (OSError, RuntimeError) as error:  # no folder, or no inotify instance left
                log.debug("watch %s: %s", self.folder, error)
                yield False
            stop.wait(RESCAN_MS / 1000)

    def _settled(self, stop: threading.Event, patience_s: float = PATIENCE_S) -> list[Change]:
        """Return what changed, once all files rest, or after a while."""
        changes = self.scan()
        patient = time.monotonic() + patience_s
        while self.unsettled and time.monotonic() < patient and not stop.wait(self.settle_s):
            changes += self.scan()
        return changes

    def _pass_on(self, deliver: Deliver, stop: threading.Event) -> None:
        changes = self._settled(stop)
        if self.complete and not self._complete_told:
            self._complete_told = True
            changes.append(Synced())
        if changes:
            deliver(changes)
