"""Nothing grows past what one can read in one go: files of 400 lines, functions of 70, and names that say something."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
EMPTY_NAMES = {"utils", "helpers", "manager", "base"}

PYTHON = sorted(path for room in ("ebpfnet", "tests", "vm") for path in (ROOT / room).rglob("*.py"))
C = sorted(path for path in ROOT.glob("bpf/**/*.[ch]") if "kernel" not in path.parts)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _python_functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def _c_functions(text: str) -> Iterator[tuple[str, int]]:
    """In kernel style a function's body, and nothing else, begins with a brace alone in the first column."""
    begin = 0
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line == "{":
            begin = number
        elif line == "}" and begin:
            yield lines[begin - 1], number - begin + 2
            begin = 0


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in (*PYTHON, *C)}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES_MAX} == {}


@pytest.mark.parametrize(("paths", "functions"), [(PYTHON, _python_functions), (C, _c_functions)], ids=["python", "c"])
def test_functions_are_short(paths: list[Path], functions: Callable[[str], Iterator[tuple[str, int]]]) -> None:
    found = [(_name(path), *function) for path in paths for function in functions(path.read_text())]
    assert len(found) > len(paths)
    assert [function for function in found if function[2] > FUNCTION_LINES_MAX] == []


def test_names_say_something() -> None:
    assert [path for path in map(_name, (*PYTHON, *C)) if EMPTY_NAMES & {*Path(path).with_suffix("").parts}] == []
