"""The wheel is whole: what a checkout reads from beside the package travels inside it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("bpf", "ebpfnet", "LICENSES", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build from a copy, so that the checkout stays clean; return the names in the wheel."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", tree / "dist", tree], check=True)
    (built,) = (tree / "dist").glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_every_c_source_is_in_it(wheel: set[str]) -> None:
    sources = {path.relative_to(ROOT / "bpf") for path in (ROOT / "bpf").rglob("*.[ch]")}
    assert sources
    assert {f"ebpfnet/_bpf/{source}" for source in sources} <= wheel


def test_the_demo_is_in_it(wheel: set[str]) -> None:
    manifests = {path.relative_to(ROOT) for path in (ROOT / "ebpfnet").rglob("*.yaml")}
    assert {str(manifest) for manifest in manifests} <= wheel


def test_the_licences_are_in_it(wheel: set[str]) -> None:
    names = {Path(name).name for name in wheel if ".dist-info/" in name}
    assert {"LICENSE", "Apache-2.0.txt", "GPL-2.0-only.txt"} <= names


def test_nothing_else_is_in_it(wheel: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"ebpfnet"}
