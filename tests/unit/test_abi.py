"""C and Python agree: every size, offset, enumerator and constant, compared both ways."""

from __future__ import annotations

import enum
import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.datapath.source import bpf_dir

HEADER = bpf_dir() / "abi.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
STRUCTS = {
    match[1]: re.findall(r"(\w+)(?:\[\w+\])?\s*(?:,|;)", match[2])
    for match in re.finditer(r"struct (\w+) \{(.*?)\n\};", TEXT, re.DOTALL)
}
ENUMERATORS = re.findall(r"^\t([A-Z0-9_]+) = \d+,", TEXT, re.MULTILINE)
DEFINES = re.findall(r"^#define ([A-Z0-9_]+) \d+", TEXT, re.MULTILINE)

RECORDS: dict[str, Any] = {
    "frontend": abi.Frontend,
    "service": abi.Service,
    "set": abi.Set,
    "slot": abi.Slot,
    "member": abi.Member,
    "client": abi.Client,
    "affinity": abi.Affinity,
    "range": abi.Range,
    "block": abi.Block,
    "node": abi.Node,
    "usage": abi.Usage,
    "backend": abi.Backend,
    "pod": abi.Pod,
    "tuple": abi.Tuple,
    "flow": abi.Flow,
    "fragment": abi.Fragment,
    "ports": abi.Ports,
    "route": abi.Route,
    "netns": abi.Netns,
    "socket": abi.Socket,
    "counter": abi.Counter,
    "drop_sample": abi.DropSample,
    "rule_key": abi.RuleKey,
    "rule": abi.Rule,
    "port_range": abi.PortRange,
    "hits": abi.Hits,
}
PARTS = {"address", "wire", "name"}  # inside other records, or plain text
ENUMS: dict[str, type[enum.IntEnum | enum.IntFlag]] = {
    "FLOW_": abi.FlowState,
    "HOOK_": abi.Hook,
    "OUTCOME_": abi.Outcome,
    "DROP_": abi.DropReason,
    "MARK_": abi.Mark,
    "SET_": abi.SetFlag,
    "BLOCK_": abi.BlockKind,
    "DEPARTED_": abi.Departure,
    "DIRECTION_": abi.Direction,
    "VERDICT_": abi.Verdict,
    "RULE_": abi.RuleFlag,
}


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C compiler makes of abi.h."""
    folder = tmp_path_factory.mktemp("abi")
    lines = ["#include <stdio.h>", "#include <stddef.h>", f'#include "{HEADER}"', "int main(void) {", 'printf("{");']
    for name, members in STRUCTS.items():
        lines.append(f'printf("\\"sizeof {name}\\": %zu,", sizeof(struct {name}));')
        offset = 'printf("\\"{0}.{1}\\": %zu,", offsetof(struct {0}, {1}));'
        lines += [offset.format(name, member) for member in members]
    lines += [f'printf("\\"{name}\\": %d,", (int){name});' for name in ENUMERATORS + DEFINES]
    lines += ['printf("\\"end\\": 0}");', "return 0; }"]
    (folder / "probe.c").write_text("\n".join(lines))
    subprocess.run(["cc", "-Wall", "-Werror", "-o", folder / "probe", folder / "probe.c"], check=True)
    found: dict[str, int] = json.loads(subprocess.check_output([folder / "probe"]))
    return found


def test_every_struct_of_c_has_a_record_and_the_reverse():
    assert set(STRUCTS) == set(RECORDS) | PARTS


@pytest.mark.parametrize("name", RECORDS)
def test_sizes_agree(name: str, probe: dict[str, int]):
    assert RECORDS[name].size() == probe[f"sizeof {name}"]


def test_size_of_a_name(probe: dict[str, int]):
    assert probe["sizeof name"] == abi.NAME_SIZE


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_of_c_has_one_in_python_and_the_reverse(name: str):
    alias = {"from_": "from"}
    python = [alias.get(each.name, each.name) for each in fields(RECORDS[name])]
    assert python == [member for member in STRUCTS[name] if not member.startswith("pad")]


def mark(record: Any, member: str) -> bytes:
    """Pack a record of zeros but for one field, which is all ones."""
    values: dict[str, Any] = {}
    for each in fields(record):
        inner = abi.Tuple(bytes(16), bytes(16), 0, 0, 0)
        backend = abi.Backend(bytes(16), 0)
        zero = {"bytes": bytes(16), "Wire": abi.Wire(0, bytes(6)), "Tuple": inner, "Backend": backend}
        zero["Frontend"] = abi.Frontend(bytes(16), 0, 0)
        kind = str(each.type).removeprefix("abi.")
        values[each.name] = zero.get(kind, zero["Wire"] if each.name == "wire" else 0)
    kind = next(str(each.type) for each in fields(record) if each.name == member)
    ones: dict[str, Any] = {"bytes": b"\xff" * 16, "Wire": abi.Wire(1, bytes(6))}
    ones["Backend"], ones["Frontend"] = abi.Backend(ones["bytes"], 0), abi.Frontend(ones["bytes"], 0, 0)
    full = abi.Tuple(b"\xff" * 16, bytes(16), 0, 0, 0)
    values[member] = full if kind == "Tuple" else ones.get(kind, 1)
    packed: bytes = record(**values).pack()
    return packed


@pytest.mark.parametrize(
    ("name", "member"), [(name, each.name) for name, rec in RECORDS.items() for each in fields(rec)]
)
def test_offsets_agree(name: str, member: str, probe: dict[str, int]):
    raw = mark(RECORDS[name], member)
    first = next(index for index, byte in enumerate(raw) if byte)
    big_endian_port = raw[first] == 1 and first == probe[f"{name}.{member.rstrip('_')}"] + 1
    big_endian_id = name == "fragment" and member == "id" and first == probe["fragment.id"] + 3
    assert first == probe[f"{name}.{member.rstrip('_')}"] or big_endian_port or big_endian_id


@pytest.mark.parametrize("name", RECORDS)
def test_unpack_is_the_reverse_of_pack(name: str):
    record = RECORDS[name]
    for each in fields(record):
        packed = mark(record, each.name)
        assert record.unpack(packed).pack() == packed


def test_every_enumerator_agrees(probe: dict[str, int]):
    python: dict[str, int] = {f"FLOW_{flag.name}": flag.value for flag in abi.FlowFlag}
    for prefix, kind in ENUMS.items():
        python |= {f"{prefix}{member.name}": member.value for member in kind}
    python |= {"FLOW_STATE_MAX": len(abi.FlowState), "HOOK_MAX": len(abi.Hook)}
    python |= {"OUTCOME_MAX": len(abi.Outcome), "DROP_MAX": abi.DROP_MAX}
    assert {name: probe[name] for name in ENUMERATORS} == python


def test_every_constant_agrees(probe: dict[str, int]):
    assert {name: probe[name] for name in DEFINES} == {name: getattr(abi, name) for name in DEFINES}


def test_abi_includes_nothing_but_integer_types():
    assert re.findall(r"#include (\S+)", TEXT) == ["<linux/types.h>"]


def test_every_map_of_c_has_a_table_and_the_reverse():
    maps = re.findall(r"^BPF_(?:F_)?TABLE\(.*, (\w+), 1(?:, \w+)?\);", (bpf_dir() / "maps.h").read_text(), re.MULTILINE)
    assert set(maps) | {"names", "layout"} == set(abi.TABLES)  # those two are for people and for the loader


def test_every_program_has_a_file_and_the_reverse():
    sources = {path.stem for path in Path(bpf_dir()).glob("*.c")} - {"ebpfnet"}
    assert sources == set(abi.PROGRAMS) - set(abi.SOCKET_PROGRAMS) | {"connect"}


def test_the_first_programs_are_the_hooks():
    assert abi.PROGRAMS[: len(abi.Hook)] == tuple(hook.name.lower() for hook in abi.Hook)
