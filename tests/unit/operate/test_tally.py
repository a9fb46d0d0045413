"""Counting, alone."""

from __future__ import annotations

import pytest

from ebpfnet.operate import tally
from ebpfnet.operate.tally import OTHER, Histogram, Tally


def test_a_bound_belongs_to_its_bucket():
    histogram = Histogram((0.5, 1.0))
    for value in (0.5, 0.6, 1.0, 7.0):
        histogram.observe(value)
    assert histogram.read() == ([("0.5", 1), ("1.0", 3), ("+Inf", 4)], 9.1)


def test_a_clock_that_is_behind_lowers_no_sum():
    histogram = Histogram((0.5,))
    histogram.observe(-3)
    assert histogram.read() == ([("0.5", 1), ("+Inf", 1)], 0)


def test_counts_by_label():
    counts = Tally()
    counts.add(("a", "b"))
    counts.add(("a", "b"), 2)
    assert counts.read() == [(("a", "b"), 3)]


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tally, "KEYS_MAX", 2)
    counts = Tally()
    for label in ("a", "b", "c", "d", "a"):
        counts.add((label, "x"))
    assert dict(counts.read()) == {("a", "x"): 2, ("b", "x"): 1, (OTHER, OTHER): 2}
