"""What the tables say of a connection."""

from __future__ import annotations

import ipaddress
import random

from ebpfnet import abi
from ebpfnet.maps.judge import EVERYBODY, Trie, class_of
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import Table


def test_a_trie_finds_what_looking_at_every_block_finds():
    dice = random.Random(3)
    roots = [bytes(16), abi.V4_PREFIX + bytes(4), abi.pack_address(ipaddress.ip_address("fd00::"))]
    plain = MemoryTable(abi.TABLES["peer_blocks"])
    for number in range(1, 300):
        length = dice.choice((0, 64, 96, 100, 120, 127, 128))
        start = int.from_bytes(dice.choice(roots), "big") + dice.randrange(1 << 12)
        key = abi.Block(length, (start >> (128 - length) << (128 - length)).to_bytes(16, "big"))
        plain.put(key.pack(), number.to_bytes(4, "little"))
    peers = MemoryTable(abi.TABLES["peers"])
    slow: dict[str, Table] = {"peers": peers, "peer_blocks": plain}
    fast: dict[str, Table] = {"peers": peers, "peer_blocks": Trie(plain.spec, plain.items())}
    asked = [(int.from_bytes(root, "big") + dice.randrange(1 << 13)).to_bytes(16, "big") for root in roots * 200]
    assert [class_of(fast, each) for each in asked] == [class_of(slow, each) for each in asked]
    assert len({class_of(fast, each) for each in asked}) > 20


def test_a_trie_without_blocks_has_nobody():
    empty: dict[str, Table] = {
        "peers": MemoryTable(abi.TABLES["peers"]),
        "peer_blocks": Trie(abi.TABLES["peer_blocks"], ()),
    }
    assert class_of(empty, bytes(16)) == EVERYBODY
