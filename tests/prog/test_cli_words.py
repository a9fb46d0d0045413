"""What the command line refuses, and in which words and exit codes; what it offers to a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebpfnet.exits import NotRoot
from ebpfnet.maps import pins
from tests.prog.commands import call, completions
from tests.prog.conftest import needs_root


def test_service_that_is_not_there_suggests_one(node: Path):
    done = call("service", "get", "default/wep", "--pins", str(node / "bpf" / "x"), check=False)
    assert done.returncode == 1
    assert "did you mean default/web?" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flow", "list", "--service", "shop/web"], "no service 'shop/web' in the tables; did you mean default/web?"),
        (["flow", "list", "--pod", "clint"], "no pod 'default/clint' in the tables; did you mean default/client?"),
        (
            ["backend", "list", "--service", "default"],
            "did you mean default/door or default/web?",
        ),
        (["backend", "list", "--service", "nix"], "no service 'default/nix' in the tables\n"),
        (["service", "get", "nix"], "no service 'default/nix' in the tables\n"),
    ],
)
def test_a_filter_for_what_is_not_there_says_so(node: Path, words: list[str], message: str):
    done = call(*words, "--pins", str(node / "bpf" / "x"), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_no_agent_ever_ran(tmp_path: Path):
    needs_root()
    done = call("service", "list", "--pins", str(tmp_path / "none"), check=False)
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.startswith("ebpfnet: no tables in ")


def test_pins_outside_of_a_bpffs(tmp_path: Path):
    needs_root()
    done = call("service", "list", "--pins", str(tmp_path), check=False)
    assert done.returncode == 4
    assert f"{tmp_path} is not on a BPF filesystem; mount one: mount -t bpf bpf {tmp_path}\n" in done.stderr


@pytest.mark.parametrize("option", ["--lab", "--name", "--node"])
def test_pins_are_of_one_node_and_not_of_a_lab(node: Path, option: str):
    done = call("pod", "list", "--pins", str(node / "bpf" / "x"), option, "x", check=False)
    assert done.returncode == 2
    assert "not both" in done.stderr


@pytest.mark.parametrize("option", ["--lab", "--name"])
@pytest.mark.parametrize("verb", [("pod", "list"), ("lab", "status")])
def test_both_names_of_the_option_for_a_lab(verb: tuple[str, str], option: str):
    needs_root()
    done = call(*verb, option, "nosuch", check=False)
    assert done.returncode == 8
    assert "no lab 'nosuch'" in done.stderr


def test_agent_without_bpffs(tmp_path: Path):
    needs_root()
    options = ["--node-name", "n", "--manifests", str(tmp_path), "--uplink", "lo"]
    done = call("agent", *options, "--pins", str(tmp_path / "x"), "--run", str(tmp_path / "run"), check=False)
    assert done.returncode == 4
    assert "mount -t bpf" in done.stderr


def test_agent_with_a_stale_pin(node: Path, tmp_path: Path):
    options = ["--node-name", "n", "--manifests", str(tmp_path), "--uplink", "lo"]
    done = call("agent", *options, "--pins", str(node / "bpf" / "x"), "--run", str(tmp_path), check=False)
    assert done.returncode == 5
    assert "ebpfnet cleanup" in done.stderr


def test_agent_without_its_uplink(node: Path, tmp_path: Path):
    options = ["--node-name", "n", "--manifests", str(tmp_path), "--uplink", "nosuch0"]
    done = call("agent", *options, "--pins", str(node / "bpf" / "y"), "--run", str(tmp_path), check=False)
    assert done.returncode == 8
    assert "--uplink nosuch0: no such interface" in done.stderr
    assert not (node / "bpf" / "y").exists()


def test_agent_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(NotRoot, match="needs root") as refused:
        pins.check_place(tmp_path)
    assert refused.value.exit_code == 3


def test_agent_with_more_flows_than_the_kernel_makes(node: Path, tmp_path: Path):
    options = ["--node-name", "n", "--manifests", str(tmp_path), "--uplink", "lo", "--max-flows", "2000000000"]
    done = call("agent", *options, "--pins", str(node / "bpf" / "z"), "--run", str(tmp_path / "run"), check=False)
    assert done.returncode == 1
    assert "create table flows of 2000000000 entries" in done.stderr
    assert "--max-flows" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (node / "bpf" / "z").exists()


def test_usage_errors():
    assert call("service", "lst", check=False).returncode == 2
    assert call("agent", "--max-flows", "1", check=False).returncode == 2
    assert call("agent", "--api-server-urls", "here", check=False).returncode == 2


@pytest.mark.parametrize("group", ["lab", "service", "backend", "pod", "flow", "drop", "map"])
def test_a_help_line_says_it_all(group: str):
    assert "..." not in call(group, "--help").stdout.partition("Commands:")[2]


def test_names_are_completed_from_the_tables(node: Path):
    place = ["--pins", str(node / "bpf" / "x")]
    assert completions("service", "get", *place, "d") == ["default/door", "default/web", "door"]
    assert completions("backend", "list", *place, "--service", "w") == ["web"]
    assert completions("flow", "list", *place, "--pod", "default/c") == ["default/client"]
    assert completions("map", "dump", *place, "se") == ["services", "sets"]


def test_nothing_is_completed_from_tables_that_are_not_there(tmp_path: Path):
    assert completions("service", "get", "--pins", str(tmp_path), "d") == []
    assert completions("lab", "exec", "--name", "nosuch", "c") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_program_where_it_is(shell: str):
    program = Path(sys.executable).with_name("ebpfnet")
    script = subprocess.run([program, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert ("$1" if shell == "bash" else f"{shell}_complete") in script
    assert (str(program) in script) == (shell != "bash")


NOBODY = "import os, sys; os.geteuid = lambda: 65534; from ebpfnet.cli.main import main; main()"


@pytest.mark.parametrize(
    "verb",
    [
        "lab up",
        "lab sync",
        "lab status",
        "lab exec x -- true",
        "lab down",
        "lab demo",
        "pod list --pins x",
        "status --pins x",
    ],
)
def test_without_root(verb: str):
    command = [sys.executable, "-c", NOBODY, *verb.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "needs root" in done.stderr
    assert "Traceback" not in done.stderr
