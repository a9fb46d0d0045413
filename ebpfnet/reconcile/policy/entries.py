"""What rules say, as entries that many may share: ranges of ports and names, counted by who leads to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ebpfnet import abi
from ebpfnet.compile.policy.entries import rule_entries
from ebpfnet.compile.policy.outcome import Outcome
from ebpfnet.reconcile.keyed import Keyed

_ID, _PORTS = slice(0, 8), slice(8, 16)  # of a value of ``rules`` and ``rule_ports``


class Entry:
    """A value of ``rules``, and what it leads to; ``uses`` counts the rules that are so."""

    __slots__ = ("names", "outcome", "ports", "uses", "value")

    def __init__(self, outcome: Outcome, texts: Mapping[int, str]) -> None:
        self.outcome = outcome
        self.value, self.ports = rule_entries(outcome)
        ids = {int.from_bytes(value[_ID], "little") for value in (self.value, *self.ports.values())}
        self.names = tuple(each for rule in ids - {0} for each in _pieces(rule, texts))
        self.uses = 0

    def lets_pass_more_than(self, other: Entry) -> bool:
        """Say whether it lets something pass that another one does not."""
        spans = (*self.outcome.spans, *other.outcome.spans)
        edges = [(0, 0), *((each.protocol, port) for each in spans for port in (each.first, each.last + 1))]
        return any(self._passes(*edge) and not other._passes(*edge) for edge in edges)

    def _passes(self, protocol: int, port: int) -> bool:
        spans = (each for each in self.outcome.spans if each.protocol == protocol and each.first <= port <= each.last)
        return next((each.decision for each in spans), self.outcome.base).verdict != abi.Verdict.DENY


def _pieces(identity: int, texts: Mapping[int, str]) -> Iterator[int]:
    yield identity
    while (identity := abi.continued(identity)) in texts:
        yield identity


class Entries:
    """All entries that a rule is. Asks for ranges of ports, and counts names."""

    def __init__(self, ports: Keyed) -> None:
        self._ports = ports
        self._held: dict[Outcome, Entry] = {}
        self._texts: dict[int, str] = {}
        self._uses: dict[int, int] = {}  # of a name
        self._sharing: dict[bytes, int] = {}  # entries, by the number of their ranges of ports
        self._told: dict[int, None] = {}

    @property
    def names(self) -> Mapping[int, str]:
        """What decides anything, for people."""
        return self._texts

    def changed_names(self) -> list[int]:
        """Return the names that are new, other ones or not used any more since this was asked last."""
        told, self._told = list(self._told), {}
        return told

    def take(self, outcome: Outcome, texts: Mapping[int, str]) -> Entry:
        """Use an outcome's entry; ``texts`` has the names of all that it mentions."""
        entry = self._held.get(outcome)
        if entry is None:
            entry = self._held[outcome] = Entry(outcome, texts)
            if entry.ports:  # others may differ in what they say of all other ports only
                self._sharing[entry.value[_PORTS]] = self._sharing.get(entry.value[_PORTS], 0) + 1
            for key, value in entry.ports.items():
                self._ports.ask(key, value)
            for each in entry.names:
                self._uses[each] = self._uses.get(each, 0) + 1
        for each in entry.names:
            text = texts.get(each)
            if text is not None and self._texts.get(each) != text:
                self._texts[each] = text
                self._told[each] = None
        entry.uses += 1
        return entry

    def release(self, entry: Entry) -> None:
        """Use an entry no longer."""
        entry.uses -= 1
        if entry.uses:
            return
        del self._held[entry.outcome]
        if entry.ports:
            self._sharing[entry.value[_PORTS]] -= 1
            if not self._sharing[entry.value[_PORTS]]:
                del self._sharing[entry.value[_PORTS]]
                for key in entry.ports:
                    self._ports.ask(key, None)
        for each in entry.names:
            self._uses[each] -= 1
            if not self._uses[each]:
                del self._uses[each]
                self._texts.pop(each, None)
                self._told[each] = None


def rule_key(group: int, number: int, direction: int) -> bytes:
    """Return a key of ``rules``."""
    return abi.RuleKey.layout.pack(group, number, direction)
