"""CI's promise that nothing is skipped, tried on a few tests of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='no moon')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('no moon')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef it(): pytest.skip('no moon')\ndef test_it(it): pass\n",
    "module": "import pytest\npytest.skip('no moon', allow_module_level=True)\n",
}


def run(folder: Path, text: str, no_skip: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    environment = {**os.environ, "EBPFNET_NO_SKIP": no_skip, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("text", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_and_tells_why(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, text, "1")
    assert done.returncode != 0
    assert "this was skipped: " in done.stdout
    assert "no moon" in done.stdout


def test_otherwise_a_skip_is_a_skip(tmp_path: Path) -> None:
    assert "1 skipped" in run(tmp_path, SKIPS["call"], "0").stdout


def test_an_expected_failure_is_none(tmp_path: Path) -> None:
    text = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_it(): assert False\n"
    assert run(tmp_path, text, "1").returncode == 0
