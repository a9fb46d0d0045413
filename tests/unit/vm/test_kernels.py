"""Which kernel of a series is taken."""

from pathlib import Path

import pytest

from vm import kernels


def test_the_newest_unpacked_one_by_number(tmp_path: Path) -> None:
    for release in ("6.12.9+deb12-amd64", "6.12.100+deb12-amd64", "6.1.0-56-amd64"):
        (tmp_path / f"linux-image-{release}").mkdir()
    assert kernels._newest_unpacked("6.12", tmp_path).release == "6.12.100+deb12-amd64"


def test_a_half_unpacked_one_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "linux-image-6.1.0-56-amd64.part").mkdir()
    with pytest.raises(kernels.NoKernel, match=r"no kernel 6\.1 "):
        kernels._newest_unpacked("6.1", tmp_path)


def test_a_series_nobody_asked_for(tmp_path: Path) -> None:
    with pytest.raises(kernels.NoKernel, match=r"6\.1, 6\.12"):
        kernels.kernel("5.10", tmp_path)
