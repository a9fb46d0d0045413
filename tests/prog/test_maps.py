"""Real maps: batches, pins, and every way a pin can be wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet import abi
from ebpfnet.abi import BPF_F_NO_PREALLOC, MapType, TableSpec
from ebpfnet.exits import NoBpffs, NotRunning, StaleLayout
from ebpfnet.maps import kernel, pins
from ebpfnet.maps.table import TableFull
from tests.prog.conftest import needs_root

SPEC = TableSpec("toy", MapType.HASH, 4, 8, 1000, BPF_F_NO_PREALLOC)
SMALL = {name: spec._replace(max_entries=min(spec.max_entries, 1024)) for name, spec in abi.TABLES.items()}


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "little")


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF filesystem of the test's own."""
    needs_root()
    place = tmp_path / "bpf"
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def table() -> Iterator[kernel.KernelTable]:
    needs_root()
    made = kernel.create(SPEC)
    yield made
    made.close()


def test_put_get_delete(table: kernel.KernelTable):
    table.put(number(1), number(2, 8))
    assert table.get(number(1)) == number(2, 8)
    table.delete(number(1))
    table.delete(number(1))
    assert table.get(number(1)) is None


@pytest.mark.parametrize("joined", [True, False])
def test_batches(table: kernel.KernelTable, joined: bool):
    keys, values = [number(n) for n in range(700)], [number(n, 8) for n in range(700)]
    if joined:
        table.put_batch(b"".join(keys), b"".join(values))
    else:
        table.put_batch(keys, values)
    assert dict(table.items()) == dict(zip(keys, values, strict=True))
    table.delete_batch([*keys[:5], number(5000), *keys[5:600]])
    assert sorted(key for key, _ in table.items()) == sorted(keys[600:])


def test_a_bad_batch_is_a_bug(table: kernel.KernelTable):
    with pytest.raises(ValueError, match="toy"):
        table.put_batch(number(1), b"")


def test_full(table: kernel.KernelTable):
    table.put_batch(b"".join(map(number, range(1000))), bytes(8000))
    with pytest.raises(TableFull, match="table toy is full: no room beyond 1000"):
        table.put(number(1001), bytes(8))


@pytest.mark.parametrize("kind", [MapType.LRU_HASH, MapType.ARRAY, MapType.PERCPU_ARRAY])
def test_other_types_read_back_whole(kind: MapType):
    needs_root()
    made = kernel.create(SPEC._replace(type=kind, max_entries=32, flags=0))
    value = number(7, 8) * (made.value_size // 8)
    made.put(number(3), value)
    assert dict(made.items())[number(3)] == value
    made.close()


def test_a_per_cpu_table_of_many_keys_reads_back_whole():
    needs_root()
    table = kernel.create(TableSpec("toy", MapType.LRU_PERCPU_HASH, 4, 8, 1000))
    value = b"".join(number(each, 8) for each in range(kernel.possible_cpus()))
    for key in range(100):
        table.put(number(key), value)
    assert dict(table.items()) == {number(key): value for key in range(100)}
    assert table.get(number(7)) == value
    table.close()


def test_tables_survive_their_descriptors(bpffs: Path):
    tables = pins.create_or_open_all(bpffs / "x", SMALL)
    tables["names"].put(number(1, 8), abi.pack_name("default/web:http"))
    pins.close_all(tables)
    again = pins.create_or_open_all(bpffs / "x", SMALL)
    raw = again["names"].get(number(1, 8))
    assert raw is not None
    assert abi.unpack_name(raw) == "default/web:http"
    assert set(pins.open_all(bpffs / "x")) == set(abi.TABLES)
    pins.close_all(again)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"value_size": 99}, "flows: value size is 99, not 120"),
        ({"key_size": 44}, "flows: key size is 44, not 40"),
        ({"type": MapType.HASH}, "flows: type is 1, not 9"),
        ({"max_entries": 512}, "flows: max entries is 512, not 1024"),
    ],
)
def test_a_stale_pin_is_refused_before_anything_is_made(bpffs: Path, change, text: str):
    place = bpffs / "x"
    place.mkdir()
    stale = kernel.create(SMALL["flows"]._replace(**change))
    stale.pin(place / "flows")
    with pytest.raises(StaleLayout, match=text):
        pins.create_or_open_all(place, SMALL)
    assert [path.name for path in place.iterdir()] == ["flows"]
    stale.close()


def test_another_layout_version_is_refused(bpffs: Path):
    tables = pins.create_or_open_all(bpffs / "x", SMALL)
    tables["layout"].put(number(0), number(99, 8))
    pins.close_all(tables)
    for refused in (lambda: pins.create_or_open_all(bpffs / "x", SMALL), lambda: pins.open_all(bpffs / "x")):
        with pytest.raises(StaleLayout, match="layout 99, this is 3"):
            refused()


def test_no_bpffs(tmp_path: Path):
    needs_root()
    with pytest.raises(NoBpffs, match="mount -t bpf"):
        pins.create_or_open_all(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_nothing_there(tmp_path: Path):
    needs_root()
    with pytest.raises(NotRunning, match="no agent has run here"):
        pins.open_all(tmp_path / "x")


def test_no_descriptor_is_leaked(bpffs: Path):
    pins.close_all(pins.create_or_open_all(bpffs / "x", SMALL))
    before = len(list(Path("/proc/self/fd").iterdir()))
    pins.close_all(pins.open_all(bpffs / "x"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
