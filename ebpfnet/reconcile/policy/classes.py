"""Which class of peers every address is in: addresses that answer all that is asked alike share a number.

A cell is a set of predicates that some address answers with yes; it has a number for as long as it has addresses. Pods
answer once for all their addresses, by group; only addresses that are in a block, of a node or of several pods are
looked at one by one. An address that several pods have answers for all of them. Where all of a cell's addresses change
their answers alike, it keeps its number, which then means something else for the same addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ebpfnet.compile.policy.predicates import HasPort, NodesWhere, PodsWhere, Predicate, Within
from ebpfnet.model.labels import Labels
from ebpfnet.model.peers import Likeness
from ebpfnet.reconcile.policy.blocks import BITS, Block, Buckets, block_of, is_v4
from ebpfnet.reconcile.policy.cells import Cell, Cells, Found, Settled, Shift
from ebpfnet.reconcile.policy.groups import Group, Groups
from ebpfnet.reconcile.policy.questions import NONE, Answers, Questions


class Classes:
    """All cells. Whatever changes is taken in first, and numbered by ``settle``."""

    def __init__(self) -> None:
        self.questions = Questions()
        self.groups = Groups()
        self.cells = Cells()
        self._homes: Buckets[tuple[Group, ...]] = Buckets()
        self._special: dict[bytes, Answers] = {}  # of addresses that are not plain
        self._loose: dict[bytes, Answers] = {}  # addresses to be looked at, and where they are counted
        self._stale: dict[Group, None] = {}
        self._blocks: dict[Block, Answers] = {}
        self._stale_blocks: dict[Block, None] = {}
        self._nodes: dict[str, tuple[Labels, tuple[bytes, ...], Answers]] = {}
        self._at: dict[bytes, dict[str, None]] = {}  # nodes by address

    # What is asked

    def ask(self, added: Iterable[Predicate], removed: Iterable[Predicate]) -> None:
        """Ask other things from now on."""
        gone = [(predicate, self.questions.remove(predicate)) for predicate in removed]
        said = {number for _, number in gone if self.cells.saying([number])}
        if said:
            self._stale.update(dict.fromkeys(group for group in self.groups if not said.isdisjoint(group.answers)))
        for predicate, _ in gone:
            self._look_again(predicate)
        for predicate in added:
            self.questions.add(predicate)
            if isinstance(predicate, PodsWhere | HasPort):
                self._stale.update(dict.fromkeys(self.groups.meant(predicate)))
            else:
                self._look_again(predicate)

    def _look_again(self, predicate: Predicate) -> None:
        """Look again at addresses that may be of a node or in a block that is asked for, or is not any more."""
        match predicate:
            case Within(network):
                block = block_of(network)
                near = [address for address in self._at if block.holds(Block(is_v4(address), BITS, _number(address)))]
                for address in (*self._homes.within(block), *near):
                    self._loosen(address)
                self._stale_blocks.update(dict.fromkeys((block, *self.questions.blocks.inside(block))))
            case NodesWhere(nodes):
                for name, (labels, _, _) in list(self._nodes.items()):
                    if nodes.matches(labels):
                        self._answer(name)

    # Who answers

    def set_namespace(self, name: str, labels: Labels | None) -> None:
        """Take a namespace's labels in, or with None that nobody knows them."""
        if labels == self.groups.namespaces.get(name):
            return
        if labels is None:
            del self.groups.namespaces[name]
        else:
            self.groups.namespaces[name] = labels
        self._stale.update(dict.fromkeys(self.groups.of(name)))

    def enter(self, likeness: Likeness, address: bytes) -> None:
        """Take in that a pod has an address."""
        group = self.groups.find(likeness)
        if group is None:
            group = self.groups.add(likeness)
            self._stale[group] = None
        self._loosen(address)
        self._homes.set(address, (*(self._homes.get(address) or ()), group))

    def fill(self, likeness: Likeness, addresses: Iterable[bytes]) -> None:
        """Take in that pods have addresses: ``enter`` for many."""
        group = self.groups.find(likeness) or self.groups.add(likeness)
        self._stale[group] = None
        alone = (group,)
        slow = bool(group.answers or self._at or self.questions.blocks)
        for address in addresses:
            if slow or address in self._loose or not self._homes.put(address, alone):
                self.enter(likeness, address)
            else:
                group.plain[address] = None

    def leave(self, likeness: Likeness, address: bytes) -> None:
        """Take in that a pod has an address no longer."""
        group = self.groups.find(likeness)
        homes = list(self._homes.get(address) or ())
        if group is None or group not in homes:
            return
        self._loosen(address)
        homes.remove(group)
        if group not in homes:
            group.others.pop(address, None)
        if homes:
            self._homes.set(address, tuple(homes))
        else:
            self._homes.drop(address)
        self._stale.setdefault(group)  # it may be empty now

    def set_node(self, name: str, labels: Labels, addresses: tuple[bytes, ...]) -> None:
        """Take a node in."""
        before = self._nodes.get(name)
        if before is not None and before[:2] == (labels, addresses):
            return
        self.drop_node(name)
        self._nodes[name] = labels, addresses, NONE
        for address in addresses:
            self._at.setdefault(address, {})[name] = None
        self._answer(name)

    def drop_node(self, name: str) -> None:
        """Take a node out; one that is not there is no error."""
        _, addresses, answers = self._nodes.pop(name, ((), (), NONE))
        for address in dict.fromkeys(addresses):
            del self._at[address][name]
            if not self._at[address]:
                del self._at[address]
            if answers:
                self._loosen(address)

    def _answer(self, name: str) -> None:
        labels, addresses, before = self._nodes[name]
        answers = self.questions.of_node(labels)
        self._nodes[name] = labels, addresses, answers
        if answers != before:
            for address in addresses:
                self._loosen(address)

    def _loosen(self, address: bytes) -> None:
        """Let an address be looked at; it stays counted where it was."""
        if address in self._loose:
            return
        before = self._special.pop(address, None)
        if before is None:
            homes = self._homes.get(address)
            home = homes[0] if homes else None
            before = NONE
            if home is not None and address in home.plain:
                del home.plain[address]
                before = home.answers
        self._loose[address] = before

    # Numbers

    def settle(self, found: Found | None = None) -> Settled:
        """Number everything anew that changed, ``found`` are the numbers that there were when we came."""
        shifts = [*self._shift_groups(), *self._shift_addresses(), *self._shift_blocks()]
        self._stale, self._loose, self._stale_blocks = {}, {}, {}
        return self.cells.settle(shifts, found)

    def meaning(self, cell: Cell) -> frozenset[Predicate]:
        """Return what those in a cell answer with yes."""
        if cell.meaning is None:
            cell.meaning = frozenset(map(self.questions.predicate, cell.answers))
        return cell.meaning

    def _shift_groups(self) -> Iterator[Shift]:
        for group in self._stale:
            namespace, labels, ports = group.likeness
            answers = self.questions.of_pods(namespace, self.groups.namespaces.get(namespace), labels, ports)
            if answers == group.answers:
                continue
            for address in group.others:
                self._loosen(address)
            if group.plain:
                yield Shift(group.answers, answers, tuple(group.plain))  # those that get it now are looked at later
            group.answers = answers

    def _shift_addresses(self) -> Iterator[Shift]:
        touched = dict.fromkeys(self._stale)
        for address, before in self._loose.items():
            now = self._place(address)
            if before != now:
                yield Shift(before, now, (address,))
        for group in touched:
            if not group.plain and not group.others:
                self.groups.remove(group)

    def _place(self, address: bytes) -> Answers:
        """Return what an address answers, and note where it is counted."""
        homes = dict.fromkeys(self._homes.get(address) or ())
        within = self.questions.blocks.around(address)
        of_nodes = [self._nodes[name][2] for name in self._at.get(address, ())]
        if len(homes) == 1 and not within and not any(of_nodes):
            (group,) = homes
            group.others.pop(address, None)
            group.plain[address] = None
            return group.answers
        for group in homes:
            group.others[address] = None
        answers = NONE.union(*of_nodes, *(group.answers for group in homes))
        if not answers:
            return NONE
        self._special[address] = answers = answers | within
        return answers

    def _shift_blocks(self) -> Iterator[Shift]:
        for block in self._stale_blocks:
            before = self._blocks.pop(block, NONE)
            now = self.questions.blocks.above(block) if block in self.questions.blocks else NONE
            if now:
                self._blocks[block] = now
            yield Shift(before, now, block)


def _number(address: bytes) -> int:
    return int.from_bytes(address, "big")
