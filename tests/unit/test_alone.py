"""One agent on a run directory, and one on a pin directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ebpfnet import alone as module
from ebpfnet.alone import alone
from ebpfnet.exits import EbpfnetError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDOVER_S", 0.05)


def test_the_run_directory_is_held(tmp_path: Path):
    with alone(tmp_path / "run", tmp_path / "a"), pytest.raises(EbpfnetError, match=r"another agent \(pid \d+\)"):  # noqa: SIM117
        with alone(tmp_path / "run", tmp_path / "b"):
            pass
    with alone(tmp_path / "run", tmp_path / "b"):
        pass


@pytest.mark.parametrize("make", [True, False])
def test_the_pins_are_held_for_whatever_run_directory(tmp_path: Path, make: bool):
    with alone(tmp_path / "one", tmp_path / "pins"), pytest.raises(EbpfnetError, match="another --run"):  # noqa: SIM117
        with alone(tmp_path / "two", tmp_path / "pins", make=make):
            pass


def test_a_clean_up_makes_nothing(tmp_path: Path):
    with alone(tmp_path / "run", tmp_path / "pins", make=False):
        assert list(tmp_path.iterdir()) == []


def fail(*places: Path) -> None:
    with alone(*places):
        (places[1] / "map").touch()
        raise ZeroDivisionError


def test_pins_that_were_made_for_nothing_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "run", tmp_path / "used")
    assert (tmp_path / "used" / "map").exists()
    monkeypatch.setattr(Path, "touch", lambda _: None)
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "run", tmp_path / "unused")
    assert not (tmp_path / "unused").exists()


def test_what_was_cleaned_up_while_we_waited_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever holds a lock may remove what is locked: then it is nobody's."""

    def locked_after_a_clean_up(_: int) -> bool:
        shutil.rmtree(tmp_path)
        return True

    monkeypatch.setattr(module, "_locked", locked_after_a_clean_up)
    with pytest.raises(EbpfnetError, match="start again"), alone(tmp_path / "run", tmp_path / "pins"):
        pass
