"""``python -m tests.apiserver``: a server in a process of its own, controlled through ``/_test/`` (`control.py`).

The first line of its output is its URL. It ends on SIGTERM, on SIGINT, or with its input when ``--stdin`` is given.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path

from tests.apiserver.churn import Churn
from tests.apiserver.scale import Scale
from tests.apiserver.server import ApiServer
from tests.apiserver.store import HISTORY, Store
from tests.apiserver.tls import Certificates, write_kubeconfig

SIZES = [each.name for each in fields(Scale) if each.init]


def scale(text: str) -> Scale:
    """Return a scale from ``full`` or ``services=100,pods=1000``. Raises ValueError."""
    pairs = [part.split("=", 1) for part in text.split(",") if text != "full"]
    if unknown := {name for name, _ in pairs} - set(SIZES):
        raise ValueError(f"no such size: {', '.join(unknown)}")
    return Scale(**{name: int(value) for name, value in pairs})


def _until_eof(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="python -m tests.apiserver", description=__doc__)
    parser.add_argument("--scale", type=scale, help=f"full, or some of {', '.join(SIZES)}=N; without it: empty")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--history", type=int, default=HISTORY, help="how many changes of a resource are kept")
    parser.add_argument("--tls", type=Path, metavar="DIR", help="HTTPS; certificates and kubeconfig are written there")
    parser.add_argument("--token", help="ask for this bearer token")
    parser.add_argument("--stdin", action="store_true", help="end when the standard input does")
    arguments = parser.parse_args()
    store = Store(history=arguments.history)
    server = ApiServer(store, port=arguments.port, certificates=Certificates(arguments.tls) if arguments.tls else None)
    server.access.token = arguments.token
    if arguments.scale:
        server.churn = Churn(arguments.scale.load(store), arguments.scale)
    gc.freeze()  # the cluster stays: no use in looking through it
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if arguments.stdin:
        threading.Thread(target=_until_eof, args=(ended,), daemon=True).start()
    with server:
        if arguments.tls:
            kubeconfig = arguments.tls / "kubeconfig"
            write_kubeconfig(kubeconfig, server.url, server.certificates, token=arguments.token, client=True)
        print(server.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
