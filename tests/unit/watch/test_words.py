"""Nobody who writes a manifest knows msgspec's names of types."""

from __future__ import annotations

import pytest

from ebpfnet.model.facts import Kind, Problem, Ref
from ebpfnet.watch.manifests import parse
from ebpfnet.watch.words import explain


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Expected `str | null`, got `int` - at `$.metadata.name`",
            ("metadata.name", "a text is expected, not a number"),
        ),
        ("Expected `object`, got `array`", ("", "an object is expected, not a list")),
        (
            "Expected `int | str | null`, got `bool` - at `$.port`",
            ("port", "a number or a text is expected, not true or false"),
        ),
        ("Expected `int`, got `float` - at `$.port`", ("port", "a number is expected, not a fraction")),
        ("Expected `int` <= 65535 - at `$.port`", ("port", "a number of at most 65535 is expected")),
        (
            "Expected `str`, got `int` - at `key` in `$.metadata.labels`",
            ("metadata.labels", "of a key: a text is expected, not a number"),
        ),
        ("Object missing required field `port` - at `$.spec.ports[0]`", ("spec.ports[0].port", "missing")),
        ("Object contains unknown field `colour`", ("colour", "there is no such field")),
        ("Invalid enum value 'x' - at `$.kind`", ("kind", "Invalid enum value 'x'")),
    ],
)
def test_in_plain_words(message: str, expected: tuple[str, str]):
    assert explain(message) == expected


@pytest.mark.parametrize(("text", "what"), [(b"5", "a number"), (b"- 5", "a list"), (b"some words", "a text")])
def test_a_document_that_is_no_object(text: bytes, what: str):
    assert [str(problem) for problem in parse("x.yaml", text).problems] == [
        f"File x.yaml: an object is expected, not {what}"
    ]


def test_a_problem_of_the_whole_names_no_field():
    assert str(Problem(Ref(Kind.FILE, "", "x.yaml"), "", "empty")) == "File x.yaml: empty"
