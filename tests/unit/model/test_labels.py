"""Selectors over labels, as the API defines their operators."""

from __future__ import annotations

import pytest

from ebpfnet.model.labels import EVERYTHING, Labels, Requirement, Selector

WEB: Labels = (("app", "web"), ("tier", "front"))
IN = Requirement("app", frozenset({"web", "api"}))
NOT_IN = IN._replace(negated=True)
EXISTS = Requirement("tier", None)
DOES_NOT_EXIST = EXISTS._replace(negated=True)


@pytest.mark.parametrize("labels", [(), WEB])
def test_an_empty_selector_selects_everything(labels: Labels):
    assert EVERYTHING.matches(labels)


@pytest.mark.parametrize(
    ("requirement", "labels", "want"),
    [
        (IN, WEB, True),
        (IN, (("app", "db"),), False),
        (IN, (), False),
        (NOT_IN, WEB, False),
        (NOT_IN, (("app", "db"),), True),
        (NOT_IN, (), True),
        (EXISTS, WEB, True),
        (EXISTS, (("tier", ""),), True),
        (EXISTS, (), False),
        (DOES_NOT_EXIST, WEB, False),
        (DOES_NOT_EXIST, (), True),
    ],
)
def test_operators(requirement: Requirement, labels: Labels, want: bool):
    assert Selector((requirement,)).matches(labels) is want


def test_every_requirement_must_hold():
    assert Selector((IN, EXISTS)).matches(WEB)
    assert not Selector((IN, DOES_NOT_EXIST)).matches(WEB)
