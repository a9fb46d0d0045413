"""The settings of loopback: set by the agent, set back by cleanup."""

from pathlib import Path

import pytest

from ebpfnet.datapath import loopback


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lo"
    folder.mkdir()
    (folder / "accept_local").write_text("0\n")
    (folder / "rp_filter").write_text("1\n")
    monkeypatch.setattr(loopback, "FOLDER", folder)
    return folder


def values(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def test_answers_are_let_in_and_cleanup_sets_back_what_was(settings: Path, tmp_path: Path) -> None:
    loopback.admit(tmp_path)
    assert values(settings) == {"accept_local": "1", "rp_filter": "2"}
    loopback.admit(tmp_path)  # the next agent must not take ours for what was there before
    assert loopback.admitted(tmp_path)
    loopback.restore(tmp_path)
    assert values(settings) == {"accept_local": "0", "rp_filter": "1"}
    assert not loopback.admitted(tmp_path)


def test_what_somebody_set_so_is_left_so(settings: Path, tmp_path: Path) -> None:
    (settings / "accept_local").write_text("1")
    (settings / "rp_filter").write_text("2")
    loopback.admit(tmp_path)
    assert not loopback.admitted(tmp_path)


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"accept_local": "rm -rf"}'])
def test_a_half_written_file_changes_nothing(settings: Path, tmp_path: Path, kept: str) -> None:
    (tmp_path / "loopback.json").write_text(kept)
    loopback.restore(tmp_path)
    assert values(settings) == {"accept_local": "0", "rp_filter": "1"}


def test_where_nothing_can_be_set_the_agent_goes_on(
    settings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (settings / "rp_filter").unlink()
    loopback.admit(tmp_path)
    assert "own NodePorts" in caplog.text
