"""The kernel's clock, read from where it is another."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ebpfnet import clock

HOUR = 3600 * clock.SECOND


@pytest.mark.parametrize(
    ("text", "ahead"),
    [
        ("monotonic           0         0\nboottime            0         0\n", 0),
        ("monotonic        3600         5\nboottime            7         0\n", HOUR + 5),
        ("monotonic       -3600         5\nboottime            7         0\n", -HOUR + 5),
    ],
)
def test_a_time_namespace_is_taken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, ahead: int):
    (tmp_path / "offsets").write_text(text)
    monkeypatch.setattr(clock, "OFFSETS", tmp_path / "offsets")
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: 9 * HOUR)
    assert clock.kernel_ns() == 9 * HOUR - ahead


def test_a_kernel_without_time_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock, "OFFSETS", tmp_path / "none")
    assert clock.offset_ns() == 0
