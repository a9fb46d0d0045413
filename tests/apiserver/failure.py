"""Answers that are no success: ``Status`` objects with the texts of the real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

EXPIRED_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You must start a new list "
    "without the continue parameter."
)


class Failure(Exception):
    """A request that is answered with a ``Status``; ``code`` is HTTP's."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": dict(metadata or {}),
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        if details:
            self.status["details"] = dict(details)

    @property
    def content_type(self) -> str:
        """What the body is."""
        return "application/json"

    def body(self) -> bytes:
        """Return the ``Status`` as JSON."""
        return msgspec.json.encode(self.status)


def too_old(asked: int, oldest: int) -> Failure:
    """Return what a watch from before the history gets, inside an ERROR event."""
    return Failure(410, "Expired", f"too old resource version: {asked} ({oldest})")


def too_new(asked: int, current: int) -> Failure:
    """Return what a list at a resourceVersion of the future gets."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return Failure(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {asked}, current: {current}",
        details={"causes": [cause], "retryAfterSeconds": 1},
    )


def bad_request(message: str) -> Failure:
    """Return a 400."""
    return Failure(400, "BadRequest", message)


def not_found(group: str, resource: str, name: str) -> Failure:
    """Return a 404 for an object."""
    full = f"{resource}.{group}" if group else resource
    details = {"name": name, "group": group, "kind": resource} if group else {"name": name, "kind": resource}
    return Failure(404, "NotFound", f'{full} "{name}" not found', details=details)


class NoPage(Failure):
    """The 404 of a path that nobody serves: plain text."""

    def __init__(self) -> None:
        super().__init__(404, "NotFound", "404 page not found")

    @property
    def content_type(self) -> str:
        """What the body is."""
        return "text/plain; charset=utf-8"

    def body(self) -> bytes:
        """Return the text."""
        return b"404 page not found\n"


def no_resource(*, plain: bool) -> Failure:
    """Return a 404 for a resource that is not installed."""
    if plain:
        return NoPage()
    return Failure(404, "NotFound", "the server could not find the requested resource", details={})


def invalid_options(field: str, message: str) -> Failure:
    """Return the 422 for a list option that is forbidden."""
    cause = {"reason": "FieldValueForbidden", "message": f"Forbidden: {message}", "field": field}
    return Failure(
        422,
        "Invalid",
        f'ListOptions.meta.k8s.io "" is invalid: {field}: Forbidden: {message}',
        details={"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]},
    )
