"""The one thing pyproject.toml cannot say: the C sources live in bpf/ here, and in ebpfnet/_bpf once installed."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithSources(build_py):
    """Also copies bpf/; an editable install reads it in place (``ebpfnet.datapath.source.bpf_dir``)."""

    def run(self) -> None:
        """Copy the Python modules, then the C sources."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "bpf", Path(self.build_lib) / "ebpfnet" / "_bpf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSources})
