"""What is said of classes while those who are to be in them move there: what was said of them before.

So nobody can tell when a peer moves. Rules change only afterwards, one by one, and each is that of pods who stay and of
peers who are where they shall be. A class that nobody was in is told what was said of those who come. Where others are
already, they come by themselves if what is said there is the same, or right already. Else all who come go by a class of
their own, one for each class that they leave, and leave that for the one that they are to be in once all rules are
right: nobody can tell that either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ebpfnet import abi
from ebpfnet.reconcile.policy.block_table import BlockTable
from ebpfnet.reconcile.policy.cells import NOBODY
from ebpfnet.reconcile.policy.entries import rule_key
from ebpfnet.reconcile.policy.tables import PeerTable, RuleTable

Concerned = Callable[[int, int], Iterable[tuple[int, int]]]
"""Groups and directions that may say something else of one class than of another."""


class Step(NamedTuple):
    """An address or a block whose class is another one now, by its own entry or by the block that it is in."""

    table: PeerTable
    key: bytes
    before: int
    now: int


class Ways(NamedTuple):
    """What the way of a step depends on."""

    rules: RuleTable
    concerned: Concerned
    is_seen: Callable[[int], bool]
    """Whether somebody is in a class."""
    fresh: Callable[[], int]
    """Makes a number that no class has or had."""
    leaving: Mapping[int, set[int]]
    """By group, the pods that are about to leave it: what it says of anybody must not change until they did."""
    owners: Callable[[Iterable[bytes]], set[int]]
    """Whose addresses these are, by the pod's id; NOBODY: of no pod of this node."""


class Meanwhile:
    """What is wanted of rules and of peers until all have moved."""

    def __init__(self, ways: Ways, steps: Iterable[Step]) -> None:
        """Find it; nothing is asked for yet."""
        self._ways = ways
        self._rules = ways.rules
        self._said: dict[bytes, tuple[bytes | None, bytes | None]] = {}  # rules until all have moved, and afterwards
        self._detours: dict[int, list[Step]] = {}  # by the number that they go by
        self._after: dict[int, dict[bytes, bytes | None]] = {}
        targets: dict[int, dict[int, list[Step]]] = {}
        for step in steps:
            targets.setdefault(step.now, {}).setdefault(step.before, []).append(step)
        for now, origins in targets.items():
            said = self._straight(now, origins)
            if said is not None:
                self._said |= said
            elif not self._is_held(now, origins):
                self._detour(now, origins)
        lacking = sum(first is not None and key not in self._rules.have for key, (first, _) in self._said.items())
        if lacking > self._rules.room:  # then who moves may meet what is said of neither
            self._said, self._detours = {}, {}

    @property
    def targets(self) -> dict[int, int]:
        """The classes that some go by, and where they are to be then."""
        return {number: steps[0].now for number, steps in self._detours.items()}

    @property
    def detours(self) -> bool:
        """Whether somebody is not yet where he is to be when rules are right."""
        return bool(self._detours)

    def _straight(
        self, now: int, origins: Mapping[int, list[Step]]
    ) -> dict[bytes, tuple[bytes | None, bytes | None]] | None:
        """Return what is to be said of a class that all go to at once; None: they can't without anybody noticing."""
        rules, said = self._rules, {}
        new = now != NOBODY and not self._ways.is_seen(now)
        for group, way in self._asking(now, origins):
            if group not in rules.seen_groups:
                continue
            olds = {rules.effective(group, before, way)[0] for before in origins}
            have, want = rules.effective(group, now, way)
            if not new and olds == {have}:
                continue
            if new and len(olds) == 1:
                value = olds.pop()
            elif (new or have == want) and not self._is_left(group, origins):
                value = want  # of several classes: each is told what is new by its move
            else:
                return None
            key = rule_key(group, now, way)
            own = value if value != rules.have.get(rule_key(group, NOBODY, way)) else None
            if new and own != rules.want.get(key):
                said[key] = own, rules.want.get(key)
        return said

    def _is_held(self, now: int, origins: Iterable[int]) -> bool:
        """Say whether a group that has no room would have to say something of a class to go by."""
        held = self._rules.held
        return bool(held) and any(group in held for each in origins for group, _ in self._ways.concerned(each, now))

    def _asking(self, now: int, origins: Iterable[int]) -> Iterable[tuple[int, int]]:
        found = dict.fromkeys(each for before in origins for each in self._ways.concerned(before, now))
        return [each for each in found if each[0] not in self._rules.held]

    def _is_left(self, group: int, origins: Mapping[int, list[Step]]) -> bool:
        """Say whether a pod is about to leave a group that may have to do with others than itself who move."""
        leaving = self._ways.leaving.get(group)
        if not leaving:
            return False
        return len(leaving) > 1 or leaving != self._ways.owners(each.key for some in origins.values() for each in some)

    def _detour(self, now: int, origins: Mapping[int, list[Step]]) -> None:
        """Let each go by a class of which is said what was said of where he was, until rules change."""
        rules = self._rules
        for before, steps in origins.items():
            number = self._ways.fresh()
            self._detours[number] = steps
            for group, way in self._asking(now, [before]):
                everybody, key = rule_key(group, NOBODY, way), rule_key(group, number, way)
                _, want = rules.effective(group, now, way)
                then = want if want != rules.want.get(everybody) else None
                first = then
                if group in rules.seen_groups:
                    value, _ = rules.effective(group, before, way)
                    first = value if value != rules.have.get(everybody) else None
                    then = then if everybody in rules.want else first
                self._said[key] = first, then

    # The way: ``begin``, then all move, ``change``, then rules change and pods get their groups, ``end``

    def begin(self) -> None:
        """Want what lets all move unnoticed."""
        for key, (first, _) in self._said.items():
            self._rules.ask(key, first)
        for number, steps in self._detours.items():
            value = number.to_bytes(4, "little")
            self._after[number] = {each.key: each.table.want.get(each.key) for each in steps}
            for each in steps:
                each.table.ask(each.key, value)

    def change(self) -> None:
        """Want the rules that are right."""
        for key, (_, then) in self._said.items():
            self._rules.ask(key, then)

    def end(self) -> None:
        """Want only what is right."""
        self.change()
        for number, steps in self._detours.items():
            for each in steps:
                each.table.ask(each.key, self._after.get(number, {}).get(each.key))
        for key in self._said:
            if abi.RuleKey.layout.unpack(key)[1] in self._detours:
                self._rules.ask(key, None)


def steps(peers: PeerTable, blocks: BlockTable) -> list[Step]:
    """Return whose class is another one now, as far as there may be room for them."""
    found = [
        Step(table, each.key, blocks.origin(each), blocks.aim(each))
        for table in (peers, blocks)
        for each in table.moves()
        if not table.is_full_for(each.key)
    ]
    return [each for each in found if each.before != each.now]
