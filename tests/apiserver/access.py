"""Who may do what, and a record of who did."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.apiserver.failure import Failure
from tests.apiserver.resources import Target

USER = "system:serviceaccount:kube-system:ebpfnet"
Seen = tuple[str, str, str, str]


class Request(NamedTuple):
    """A request that arrived: the four things RBAC judges by, then its path with the query, and when (monotonic, s)."""

    verb: str
    group: str
    resource: str
    namespace: str
    path: str
    at: float


class Log:
    """The requests that arrived, and the watches that are open; a test waits on either."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.requests: list[Request] = []
        self.watches: dict[str, int] = {}

    def add(self, verb: str, target: Target, path: str) -> None:
        """Record a request."""
        with self.changed:
            at = time.monotonic()
            self.requests.append(Request(verb, target.group, target.resource, target.namespace, path, at))
            self.changed.notify_all()

    def watching(self, resource: str, change: int) -> None:
        """Count a watch that began (1: its headers are sent) or ended (-1)."""
        with self.changed:
            self.watches[resource] = self.watches.get(resource, 0) + change
            self.changed.notify_all()

    def seen(self) -> set[Seen]:
        """Return (verb, group, resource, namespace) of every request."""
        with self.changed:
            return {request[:4] for request in self.requests}

    def wait(self, condition: Callable[[Log], bool], timeout_s: float = 10) -> None:
        """Wait until a condition of the log holds. Raises TimeoutError."""
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self), timeout_s):
                raise TimeoutError(
                    f"not within {timeout_s} s; watches: {self.watches}, requests: {self.requests[-20:]}"
                )


class Access:
    """What is asked of a client: a bearer ``token`` (None: nothing), and ``allowed`` (verb, resource) (None: all)."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.allowed: set[tuple[str, str]] | None = None

    def check(self, verb: str, target: Target, authorization: str | None, *, certified: bool) -> None:
        """Raise Failure (401 or 403) unless a request may pass; a client certificate is as good as the token."""
        scheme, _, token = (authorization or "").partition(" ")  # a scheme is of any case (RFC 9110)
        if self.token is not None and not certified and (scheme.lower(), token) != ("bearer", self.token):
            raise Failure(401, "Unauthorized", "Unauthorized")
        if self.allowed is not None and (verb, target.resource) not in self.allowed:
            raise forbidden(verb, target)


def forbidden(verb: str, target: Target) -> Failure:
    """Return the 403 that the real server answers with."""
    full = f"{target.resource}.{target.group}" if target.group else target.resource
    if target.resource.startswith("/"):
        message = f'forbidden: User "{USER}" cannot {verb} path "{target.resource}"'
        return Failure(403, "Forbidden", message, details={})
    scope = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    what = f'{full} "{target.name}"' if target.name else full
    details = {"group": target.group, "kind": target.resource, "name": target.name}
    return Failure(
        403,
        "Forbidden",
        f'{what} is forbidden: User "{USER}" cannot {verb} resource "{target.resource}" '
        f'in API group "{target.group}" {scope}',
        details={key: value for key, value in details.items() if value},
    )
