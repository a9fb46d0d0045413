"""Every map and every program."""

from __future__ import annotations

import enum
from typing import NamedTuple

from ebpfnet.abi.flows import Counter, DropSample, Flow, Fragment, Ports, Route, Tuple, Usage
from ebpfnet.abi.numbers import DROP_MAX, DROP_SAMPLES, GENERATIONS, NAME_SIZE, ROUTES, Hook, Outcome
from ebpfnet.abi.policies import Hits, PortRange, Rule, RuleKey
from ebpfnet.abi.services import (
    Affinity,
    Backend,
    Block,
    Client,
    Frontend,
    Member,
    Node,
    Pod,
    Range,
    Service,
    Set,
    Slot,
)
from ebpfnet.abi.sockets import Netns, Socket


class MapType(enum.IntEnum):
    """``enum bpf_map_type`` of include/uapi/linux/bpf.h, as far as we use it."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11


BPF_F_NO_PREALLOC = 1


class TableSpec(NamedTuple):
    """What a map in the kernel must look like; a pinned map that differs is refused."""

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec("services", MapType.HASH, Frontend.size(), Service.size(), 65_536, BPF_F_NO_PREALLOC),
        TableSpec("sets", MapType.HASH, 8, Set.size(), 65_536, BPF_F_NO_PREALLOC),
        TableSpec("slots", MapType.HASH, Slot.size(), Backend.size(), 524_288, BPF_F_NO_PREALLOC),
        TableSpec("members", MapType.HASH, Member.size(), 4, 262_144, BPF_F_NO_PREALLOC),
        TableSpec("affinity", MapType.LRU_HASH, Client.size(), Affinity.size(), 65_536),
        TableSpec("ranges", MapType.LPM_TRIE, Range.size(), 4, 65_536, BPF_F_NO_PREALLOC),
        TableSpec("blocks", MapType.LPM_TRIE, Block.size(), 4, 4_096, BPF_F_NO_PREALLOC),
        TableSpec("node", MapType.ARRAY, 4, Node.size(), 1),
        TableSpec("usage", MapType.LRU_PERCPU_HASH, Member.size(), Usage.size(), 65_536),
        TableSpec("pods", MapType.HASH, 16, Pod.size(), 4_096, BPF_F_NO_PREALLOC),
        TableSpec("flows", MapType.LRU_HASH, Tuple.size(), Flow.size(), 262_144),
        TableSpec("departed", MapType.HASH, Member.size(), 4, 16_384, BPF_F_NO_PREALLOC),
        TableSpec("turn", MapType.ARRAY, 4, 4, 1),
        TableSpec("scratch", MapType.PERCPU_ARRAY, 4, Flow.size(), 4),
        TableSpec("fragments", MapType.LRU_HASH, Fragment.size(), Ports.size(), 8_192),
        TableSpec("namespaces", MapType.LRU_HASH, Netns.size(), 16, 16_384),
        TableSpec("sockets", MapType.LRU_HASH, 8, Socket.size(), 65_536),
        TableSpec("names", MapType.HASH, 8, NAME_SIZE, 131_072, BPF_F_NO_PREALLOC),
        TableSpec("peers", MapType.HASH, 16, 4, 524_288, BPF_F_NO_PREALLOC),
        TableSpec("peer_blocks", MapType.LPM_TRIE, Block.size(), 4, 65_536, BPF_F_NO_PREALLOC),
        TableSpec("rules", MapType.HASH, RuleKey.size(), Rule.size(), 262_144, BPF_F_NO_PREALLOC),
        TableSpec("rule_ports", MapType.HASH, PortRange.size(), Rule.size(), 262_144, BPF_F_NO_PREALLOC),
        TableSpec("rule_hits", MapType.LRU_PERCPU_HASH, 8, Hits.size(), 65_536),
        TableSpec("generations", MapType.ARRAY, 4, 4, GENERATIONS),
        TableSpec("routes", MapType.PERCPU_ARRAY, 4, Route.size(), ROUTES),
        TableSpec("forwards", MapType.PERCPU_ARRAY, 4, Counter.size(), len(Hook) * len(Outcome)),
        TableSpec("drops", MapType.PERCPU_ARRAY, 4, Counter.size(), len(Hook) * DROP_MAX),
        TableSpec("drop_samples", MapType.ARRAY, 4, DropSample.size(), DROP_SAMPLES),
        TableSpec("drop_sequence", MapType.ARRAY, 4, 8, 1),
        TableSpec("layout", MapType.ARRAY, 4, 8, 1),
    )
}
"""Every map. ``layout`` holds LAYOUT_VERSION; max_entries is the default, which the agent's flags may change."""
SOCKET_PROGRAMS = ("connect4", "connect6", "getpeername4", "getpeername6")
"""What runs on a cgroup's sockets, not on an interface's packets."""
PROGRAMS: tuple[str, ...] = (
    *(hook.name.lower() for hook in Hook),
    "from_pod_beside",
    "to_pod_beside",
    "to_network_beside",
    *SOCKET_PROGRAMS,
)
"""Names of the programs: in the order of ``Hook``; what stands in on another CNI plugin's wires; sockets' programs."""
