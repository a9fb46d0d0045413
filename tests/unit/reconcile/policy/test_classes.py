"""Addresses that answer alike share a number, whatever the way there."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.compile.policy.predicates import HasPort, NodesWhere, PodsWhere, Predicate, Within
from ebpfnet.model.facts import PodPort
from ebpfnet.model.labels import EVERYTHING, Labels, Requirement, Selector
from ebpfnet.model.peers import Likeness
from ebpfnet.reconcile.policy.blocks import block_of
from ebpfnet.reconcile.policy.cells import Settled
from ebpfnet.reconcile.policy.classes import Classes


def packed(text: str) -> bytes:
    return abi.pack_address(ipaddress.ip_address(text))


def where(key: str, *values: str, negated: bool = False) -> Selector:
    return Selector((Requirement(key, frozenset(values) if values else None, negated),))


ADDRESSES = [packed(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "fd00::1", "fd00::2", "fd01::1")]
LABELS: list[Labels] = [(), (("app", "web"),), (("app", "db"),), (("app", "web"), ("tier", "x"))]
NAMESPACES = ["a", "b"]
PORTS = [(), (PodPort("http", 6, 80),), (PodPort("http", 6, 8080), PodPort("dns", 17, 53))]
PREDICATES: list[Predicate] = [
    *(
        PodsWhere(namespace, None, pods)
        for namespace in NAMESPACES
        for pods in (EVERYTHING, where("app", "web"), where("app", "web", negated=True), where("tier"))
    ),
    *(
        PodsWhere("", namespaces, pods)
        for namespaces in (EVERYTHING, where("team", "red"), where("team", negated=True))
        for pods in (EVERYTHING, where("app", "web", "db"))
    ),
    HasPort("http", 6, 80),
    HasPort("http", 6, 8080),
    HasPort("dns", 17, 53),
    NodesWhere(EVERYTHING),
    NodesWhere(where("app", "web")),
    *(
        Within(ipaddress.ip_network(text))
        for text in ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/23", "10.0.0.0/24", "10.0.0.1/32", "::/0", "fd00::/64")
    ),
]


class Naive:
    """What is known, and the plain way to say who answers what."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[Any, ...]] = {}
        self.namespaces: dict[str, Labels] = {}
        self.nodes: dict[str, tuple[Any, ...]] = {}
        self.asked: set[Predicate] = set()

    def says(self, predicate: Predicate, address: bytes) -> bool:
        match predicate:
            case Within(block):
                return abi.unpack_address(address) in block
            case NodesWhere(nodes):
                return any(address in own and nodes.matches(labels) for labels, own in self.nodes.values())
        for (namespace, labels, ports), own in self.pods.values():
            if address not in own:
                continue
            if isinstance(predicate, HasPort):
                if any((each.name, each.protocol, each.port) == tuple(predicate) for each in ports):
                    return True
            elif predicate.namespaces is None:
                if predicate.means(namespace, (), labels):
                    return True
            elif namespace in self.namespaces and predicate.means(namespace, self.namespaces[namespace], labels):
                return True
        return False

    def cell(self, address: bytes) -> frozenset[Predicate]:
        """What it answers, as far as an entry of its own is needed: what is only in blocks has none."""
        found = frozenset(each for each in self.asked if self.says(each, address))
        return found if any(not isinstance(each, Within) for each in found) else frozenset()

    def block_cell(self, block: ipaddress.IPv4Network | ipaddress.IPv6Network) -> frozenset[Predicate]:
        every = [each for each in self.asked if isinstance(each, Within) and each.block.version == block.version]
        return frozenset(each for each in every if block.subnet_of(each.block))  # type: ignore[arg-type]


class World:
    """Classes that events come to, and the table that their changes make."""

    def __init__(self) -> None:
        self.classes = Classes()
        self.naive = Naive()
        self.table: dict[object, int] = {}

    def take(self, settled: Settled) -> None:
        for who, number in (*settled.addresses.items(), *settled.blocks.items()):
            if number:
                self.table[who] = number
            else:
                del self.table[who]

    def event(self, draw: random.Random) -> None:
        classes, naive = self.classes, self.naive
        match draw.randrange(8):
            case 0 | 1:
                some = draw.sample(PREDICATES, draw.randrange(4))
                removed = [each for each in some if each in naive.asked]
                added = [each for each in some if each not in naive.asked]
                classes.ask(added, removed)
                naive.asked = (naive.asked - set(removed)) | set(added)
            case 2:
                name, labels = draw.choice(NAMESPACES), draw.choice([None, (), (("team", "red"),), (("team", "blue"),)])
                classes.set_namespace(name, labels)
                naive.namespaces.pop(name, None)
                if labels is not None:
                    naive.namespaces[name] = labels
            case 3:
                name = draw.choice("xy")
                if draw.random() < 0.3:
                    classes.drop_node(name)
                    naive.nodes.pop(name, None)
                else:
                    node = draw.choice(LABELS), tuple(draw.sample(ADDRESSES, draw.randrange(3)))
                    classes.set_node(name, *node)
                    naive.nodes[name] = node
            case _:
                name = draw.choice("klmno")
                likeness, addresses = naive.pods.pop(name, (None, ()))
                for each in addresses:
                    classes.leave(likeness, each)
                if draw.random() < 0.8:
                    likeness = Likeness(draw.choice(NAMESPACES), draw.choice(LABELS), draw.choice(PORTS))
                    addresses = draw.sample(ADDRESSES, draw.randrange(3))
                    naive.pods[name] = likeness, addresses
                    if draw.random() < 0.5:
                        classes.fill(likeness, addresses)
                    else:
                        for each in addresses:
                            classes.enter(likeness, each)

    def check(self) -> None:
        """Equal cells have equal numbers, others have others; and the classes know what each number means."""
        want = {address: self.naive.cell(address) for address in ADDRESSES}
        blocks = {each.block for each in self.naive.asked if isinstance(each, Within)}
        cells: dict[object, frozenset[Predicate]] = {who: cell for who, cell in want.items() if cell}
        cells |= {block_of(block): self.naive.block_cell(block) for block in blocks}
        assert self.table.keys() == cells.keys()
        numbers = {cells[who]: number for who, number in self.table.items()}
        assert {who: numbers[cell] for who, cell in cells.items()} == self.table
        assert len(set(numbers.values())) == len(numbers)
        known = {number: self.classes.meaning(cell) for number, cell in self.classes.cells.by_number.items()}
        assert known == {number: cell for cell, number in numbers.items()}


@pytest.mark.parametrize("seed", [*range(300), 1456])
def test_any_path_ends_with_those_who_answer_alike_in_one_class(seed: int):
    draw = random.Random(seed)
    world = World()
    for _ in range(40):
        for _ in range(draw.choice([1, 1, 1, 4])):
            world.event(draw)
        world.take(world.classes.settle())
        world.check()


@pytest.mark.parametrize("seed", range(50))
def test_who_comes_back_goes_on_with_the_numbers_that_are_there(seed: int):
    draw = random.Random(seed)
    before = World()
    for _ in range(30):
        before.event(draw)
    before.take(before.classes.settle())
    after = World()
    naive = after.naive = before.naive
    classes = after.classes
    for name in sorted(naive.namespaces, reverse=True):
        classes.set_namespace(name, naive.namespaces[name])
    for likeness, addresses in reversed(list(naive.pods.values())):
        classes.fill(likeness, addresses)
    for name, node in naive.nodes.items():
        classes.set_node(name, *node)
    classes.ask(sorted(naive.asked, key=repr), [])
    numbers = dict(before.table.items())
    classes.cells.skip(numbers.values())
    after.take(classes.settle((numbers, numbers)))  # type: ignore[arg-type]
    assert after.table == before.table
    after.check()


def ask(classes: Classes, *added: Predicate, removed: tuple[Predicate, ...] = ()) -> Settled:
    classes.ask(added, removed)
    return classes.settle()


ALL_OF_A, WEB_OF_A = PodsWhere("a", None, EVERYTHING), PodsWhere("a", None, where("app", "web"))
WEB, DB = Likeness("a", LABELS[1], ()), Likeness("a", LABELS[2], ())


def test_what_all_or_none_of_a_class_answer_renumbers_nothing():
    classes = Classes()
    classes.fill(WEB, ADDRESSES[:2])
    first = ask(classes, ALL_OF_A)
    assert set(first.addresses.values()) == {1}
    assert ask(classes, WEB_OF_A).addresses == {}
    assert ask(classes, PodsWhere("b", None, EVERYTHING)).addresses == {}
    assert ask(classes, removed=(ALL_OF_A,)).addresses == {}


def test_a_class_is_split_by_those_who_answer_otherwise():
    classes = Classes()
    classes.fill(WEB, ADDRESSES[:1])
    classes.fill(DB, ADDRESSES[1:3])
    assert set(ask(classes, ALL_OF_A).addresses.values()) == {1}
    split = ask(classes, WEB_OF_A)
    assert split.addresses == {ADDRESSES[0]: 2}
    assert (split.changed, split.gone) == ({2: frozenset()}, {})


def test_a_number_is_never_given_to_somebody_else():
    classes = Classes()
    classes.fill(WEB, ADDRESSES[:1])
    ask(classes, ALL_OF_A)
    ask(classes, removed=(ALL_OF_A,))
    assert set(ask(classes, WEB_OF_A).addresses.values()) == {2}


def test_all_addresses_of_ipv6_are_none_of_ipv4():
    classes = Classes()
    classes.fill(WEB, ADDRESSES[:1])
    ask(classes, ALL_OF_A)
    assert ask(classes, Within(ipaddress.ip_network("::/0"))).addresses == {}
