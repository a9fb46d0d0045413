"""One process at a time builds or removes a lab."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ebpfnet.lab import state
from ebpfnet.lab.state import LabBusyError, Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(state, "FOLDER", tmp_path)
    return Places("one")


def test_a_lock_that_is_kept_is_reported(places: Places, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.05)
    with state.locked(places), pytest.raises(LabBusyError, match="'one' is being built"), state.locked(places):
        pass


def test_a_lock_that_a_dying_process_still_holds_is_waited_for(places: Places):
    held, asked = threading.Event(), threading.Event()

    def die_slowly() -> None:
        with state.locked(places):
            held.set()
            asked.wait()
            threading.Event().wait(0.1)

    holder = threading.Thread(target=die_slowly)
    holder.start()
    held.wait()
    asked.set()
    with state.locked(places):
        pass
    holder.join()
    assert places.root.is_dir()


def test_a_folder_that_was_removed_is_made_again(places: Places):
    with state.locked(places):
        places.root.rmdir()
    with state.locked(places):
        assert places.root.is_dir()
