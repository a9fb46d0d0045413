"""What the agent's flags mean."""

import pytest

from ebpfnet.cli.agent import agent


@pytest.mark.parametrize(
    ("arguments", "cgroup"),
    [
        ([], ""),
        (["--socket-shortcut"], "root"),
        (["--socket-shortcut", "--log-level=debug"], "root"),
        (["--socket-shortcut=/sys/fs/cgroup/kubepods.slice"], "/sys/fs/cgroup/kubepods.slice"),
    ],
)
def test_the_socket_shortcut_is_off_or_on_a_cgroup(arguments: list[str], cgroup: str):
    assert agent.make_context("agent", arguments).params["socket_shortcut"] == cgroup


@pytest.mark.parametrize(("said", "cgroup"), [("", ""), ("false", ""), ("true", "root"), ("1", "root"), ("/x", "/x")])
def test_the_environment_says_it_too(said: str, cgroup: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EBPFNET_SOCKET_SHORTCUT", said)
    assert agent.make_context("agent", []).params["socket_shortcut"] == cgroup
