"""Programs on interfaces beside other tools' filters, and cleanup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfnet import abi
from ebpfnet.alone import alone
from ebpfnet.datapath import build, load
from ebpfnet.maps import kernel

SMALL = {name: spec._replace(max_entries=min(spec.max_entries, 256)) for name, spec in abi.TABLES.items()}


@pytest.fixture
def netns() -> Iterator[str]:
    """A network namespace with a veth, and our programs pinned beside nothing."""
    name = f"ebn-t{os.getpid()}-attach"
    run("ip", "netns", "add", name)
    try:
        inside(name, "ip", "link", "add", "wire", "type", "veth", "peer", "name", "other")
        yield name
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, load.Program]]:
    tables = {name: kernel.create(spec) for name, spec in SMALL.items()}
    loaded = load.load(build.compiled(), tables)
    yield loaded
    for program in loaded.values():
        program.close()
    for table in tables.values():
        table.close()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inside(netns: str, *command: str) -> str:
    return run("nsenter", f"--net=/run/netns/{netns}", *command)


def python(netns: str, code: str, programs: dict[str, load.Program]) -> str:
    """Run a line of Python in the namespace, with the programs' descriptors open and `attach` imported."""
    files = {name: program.fd for name, program in programs.items()}
    head = f"from ebpfnet.datapath import attach, load\np = {{n: load.Program(n, f) for n, f in {files}.items()}}\n"
    command = ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", head + code]
    fds = tuple(files.values())
    return subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=fds).stdout


def index(netns: str, name: str) -> int:
    found: int = json.loads(inside(netns, "ip", "-j", "link", "show", name))[0]["ifindex"]
    return found


def filters(netns: str, direction: str) -> list[tuple[int, str]]:
    shown = json.loads(inside(netns, "tc", "-j", "filter", "show", "dev", "wire", direction) or "[]")
    return [(each["pref"], each["options"].get("bpf_name", each["kind"])) for each in shown if "options" in each]


def test_both_directions(netns: str, programs: dict[str, load.Program]):
    code = f"attach.attach({index(netns, 'wire')}, [p['from_pod'], p['to_pod']])"
    python(netns, code, programs)
    assert [name for _, name in filters(netns, "ingress")] == ["ebpfnet/from_pod"]
    assert [name for _, name in filters(netns, "egress")] == ["ebpfnet/to_pod"]


def test_again_replaces_in_place(netns: str, programs: dict[str, load.Program]):
    code = f"attach.attach({index(netns, 'wire')}, [p['from_pod']])"
    python(netns, code, programs)
    before = filters(netns, "ingress")
    python(netns, code, programs)
    assert filters(netns, "ingress") == before
    assert len(before) == 1


def test_another_tools_filter_and_its_clsact_stay(netns: str, programs: dict[str, load.Program]):
    code = f"""
from pyroute2 import IPRoute
with IPRoute() as ip:
    ip.tc("add", "clsact", {index(netns, "wire")})
    ip.tc("add-filter", "bpf", {index(netns, "wire")}, fd=p["to_network"].fd, name="other/tool", parent="ffff:fff2",
          prio=1, handle=1, protocol=3, direct_action=True)
"""
    python(netns, code, programs)
    python(netns, f"attach.attach({index(netns, 'wire')}, [p['from_pod'], p['to_pod']])", programs)
    assert sorted(filters(netns, "ingress")) == [(1, "other/tool"), (2, "ebpfnet/from_pod")]
    assert python(netns, "print(list(attach.everywhere(remove=True)))", programs).strip() == (
        "[('wire', ['from_pod', 'to_pod'])]"
    )
    assert filters(netns, "ingress") == [(1, "other/tool")]
    assert "clsact" in inside(netns, "tc", "qdisc", "show", "dev", "wire")


def test_another_tools_ingress_qdisc_is_no_clsact(netns: str, programs: dict[str, load.Program]):
    inside(netns, "tc", "qdisc", "add", "dev", "wire", "ingress")
    code = f"""
try:
    attach.attach({index(netns, "wire")}, [p["from_pod"], p["to_pod"]])
except attach.AttachFailed as error:
    print(error)
"""
    assert "ingress qdisc" in python(netns, code, programs)
    assert filters(netns, "ingress") == []
    assert "qdisc ingress" in inside(netns, "tc", "qdisc", "show", "dev", "wire")


def test_cleanup_removes_all_of_ours(netns: str, programs: dict[str, load.Program], tmp_path: Path):
    python(netns, f"attach.attach({index(netns, 'wire')}, [p['from_pod']])", programs)
    place = ("--pins", str(tmp_path / "pins"), "--run", str(tmp_path))
    (tmp_path / "agent.sock").touch()
    said = inside(netns, sys.executable, "-m", "ebpfnet", "cleanup", "--dry-run", *place)
    assert "would remove from_pod from wire" in said
    assert filters(netns, "ingress")
    assert "removed from_pod from wire" in inside(netns, sys.executable, "-m", "ebpfnet", "cleanup", *place)
    assert "clsact" not in inside(netns, "tc", "qdisc", "show", "dev", "wire")
    assert not (tmp_path / "agent.sock").exists()
    assert inside(netns, sys.executable, "-m", "ebpfnet", "cleanup", *place).strip() == "nothing of ours is here"


@pytest.mark.parametrize("what", ["run", "pins"])
def test_cleanup_leaves_what_an_agent_holds(netns: str, programs: dict[str, load.Program], tmp_path: Path, what: str):
    python(netns, f"attach.attach({index(netns, 'wire')}, [p['from_pod']])", programs)
    place = ("--pins", str(tmp_path / "pins"), "--run", str(tmp_path))
    held = (tmp_path, tmp_path / "other") if what == "run" else (tmp_path / "other", tmp_path / "pins")
    with alone(*held), pytest.raises(subprocess.CalledProcessError) as refused:
        inside(netns, sys.executable, "-m", "ebpfnet", "cleanup", *place)
    assert "another agent" in refused.value.stderr
    assert filters(netns, "ingress")


def test_cleanup_removes_programs_that_were_about_to_be_pinned(netns: str, tmp_path: Path):
    """An agent that is killed between pinning beside and renaming leaves these."""
    (tmp_path / "pins").mkdir()
    for name in ("to_pod", "to_pod_new", "theirs"):
        (tmp_path / "pins" / name).touch()
    place = ("--pins", str(tmp_path / "pins"), "--run", str(tmp_path))
    inside(netns, sys.executable, "-m", "ebpfnet", "cleanup", *place)
    assert [path.name for path in (tmp_path / "pins").iterdir()] == ["theirs"]
