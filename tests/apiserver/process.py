"""An API server in a process of its own, as a test sees it: it ends with the test, however that ends."""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self
from urllib.request import Request, urlopen

CLOSE_S = 5


class Process:
    """``with Process("--scale", "full") as server: server.url; server.post("flip", rate=1_000)``; plain HTTP only."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.apiserver", "--stdin", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        self.pid = self._process.pid
        if not self.url:
            raise ChildProcessError(f"the API server ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def post(self, action: str, **values: Any) -> Any:
        """Do an action of `control`; returns its result. Raises HTTPError."""
        request = Request(f"{self.url}/_test/{action}", json.dumps(values).encode(), method="POST")
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)
