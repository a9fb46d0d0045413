"""Lines in, answers out: flows, and with ``interactive`` changes of the cluster between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ebpfnet.model.facts import Change, Delete, Kind, Problem, Ref, Upsert
from ebpfnet.simulate import flows
from ebpfnet.simulate.answer import answer
from ebpfnet.simulate.world import World
from ebpfnet.watch import manifests
from ebpfnet.watch.words import explain

COMMANDS = ("apply", "delete", "reset")


class _Deletion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    name: str
    namespace: str = ""


class Session:
    """A world and what was asked of it. ``failed`` says whether any flow could not be simulated."""

    def __init__(
        self, world: World, initial: Iterable[Change], proxy_name: str = "", *, interactive: bool = False
    ) -> None:
        self.failed = False
        self._world = world
        self._initial = list(initial)
        self._proxy_name = proxy_name
        self._interactive = interactive
        self._start()

    def _start(self) -> None:
        self._world.apply(self._initial)
        self._world.load()

    def answers(self, lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
        """Yield one answer for each line that is not empty, in order."""
        for line in lines:
            if line.strip():
                yield self._answer(line)

    def _answer(self, line: str | bytes) -> dict[str, Any]:
        try:
            asked = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.failed = True
            text = line if isinstance(line, str) else line.decode(errors="replace")
            return {"flow": text.strip(), "error": f"not JSON: {error}"}
        if self._interactive and isinstance(asked, dict) and any(command in asked for command in COMMANDS):
            return self._command(asked)
        try:
            return {"flow": asked, **answer(self._world, flows.parse(asked))}
        except flows.BadFlow as error:
            self.failed = True
            return {"flow": asked, "error": str(error)}

    def _command(self, asked: dict[str, Any]) -> dict[str, Any]:
        if len(asked) != 1:
            return _refusal(f"one of {', '.join(COMMANDS)}, and nothing beside it")
        command, argument = next(iter(asked.items()))
        if command == "apply":
            return self._apply(argument)
        if command == "delete":
            return self._delete(argument)
        if argument is not True:
            return _refusal("reset: true, and nothing else")
        self._world.reset()
        self._start()
        return {"ok": True}

    def _apply(self, manifest: object) -> dict[str, Any]:
        content = manifests.parse("apply.json", msgspec.json.encode(manifest), self._proxy_name)
        refused = [problem for problem in content.problems if problem.ref not in content.facts]
        if refused:
            return _refusal("; ".join(map(str, refused)))
        changes: list[Change] = [*map(Upsert, content.facts.values())]
        if not changes:
            ref = _ref_of(manifest)
            if ref not in self._world.facts:
                return _refusal("nothing in it is followed")
            changes = [Delete(ref)]  # it was something, and now is nothing to us
        before = set(self._world.problems)
        self._world.apply(changes)
        now = [problem for problem in self._world.problems if problem not in before or problem.ref in content.facts]
        return _accepted([*content.problems, *now])

    def _delete(self, argument: object) -> dict[str, Any]:
        try:
            wanted = msgspec.convert(argument, _Deletion)
        except msgspec.ValidationError as error:
            field, reason = explain(str(error))
            return _refusal(f"delete{field and '.'}{field}: {reason}")
        cluster_wide = wanted.kind in {Kind.NODE, Kind.NAMESPACE}
        ref = Ref(wanted.kind, "" if cluster_wide else wanted.namespace or "default", wanted.name)
        if ref not in self._world.facts:
            return _refusal(f"there is no {ref}")
        self._world.apply([Delete(ref)])
        return {"ok": True}


def _ref_of(manifest: object) -> Ref | None:
    """Return which object a manifest is that decoded to nothing, or None."""
    if not isinstance(manifest, dict) or manifest.get("kind") not in set(Kind):
        return None
    meta = manifest.get("metadata") or {}
    return Ref(Kind(manifest["kind"]), meta.get("namespace") or "default", meta.get("name") or "")


def _accepted(problems: list[Problem]) -> dict[str, Any]:
    return {"ok": True, "problems": [str(problem) for problem in problems]} if problems else {"ok": True}


def _refusal(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}
