"""What the agent logs: text for a terminal, one JSON object a line otherwise, and never a secret.

Client libraries log requests and quote configuration files, and an exception may carry either. ``Redact`` stands on
the handler, so that it sees every record whoever wrote it, and before anything is formatted.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

HIDDEN = "[redacted]"

_NAMES = (
    r"(?:bearer[-_]?|access[-_]?|refresh[-_]?|id[-_]?|session[-_]?|bootstrap[-_]?|auth[-_]?)?token(?:[-_]data)?"
    r"|client[-_]?key(?:[-_]?data)?|client[-_]?secret|private[-_]?key|api[-_]?key|passw(?:or)?d"
)
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        # A private key in PEM, whole or cut off, and the same in base64 as a kubeconfig holds it.
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN),
        (r"\bLS0tLS1CRUdJTi[A-Za-z0-9+/=]*", HIDDEN),
        # Headers: the rest of the line, or up to the quote that ends it where headers are printed as a mapping.
        (
            r"""((?:proxy-)?authorization|(?:set-)?cookie)(["']?\s*[:=,]\s*(?:b?["'])?)[^"'\r\n]+""",
            rf"\1\2{HIDDEN}",
        ),
        (r"\b(bearer)\s+[A-Za-z0-9._~+/=-]{6,}", rf"\1 {HIDDEN}"),
        # JSON web tokens: service accounts have them.
        (r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?", HIDDEN),
        # scheme://user:password@host
        (r"(\b[a-z][a-z0-9+.-]{0,20}://)[^/\s@\"']+@", rf"\1{HIDDEN}@"),
        # A flag and its value, name=value and name: value, in URLs, YAML, JSON and Python.
        (rf"(--(?:{_NAMES}))(\s+)\S+", rf"\1\2{HIDDEN}"),
        (
            rf"""(?<![A-Za-z0-9])({_NAMES})(["']?\s*[:=]\s*)(?:b?"[^"]*"?|b?'[^']*'?|[^\s"'&,;)\]}}]+)""",
            rf"\1\2{HIDDEN}",
        ),
    )
)


def redact(text: str) -> str:
    """Return the text with bearer tokens, credentials in headers and URLs, passwords and private keys hidden."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class Redact(logging.Filter):
    """Hides secrets in a record's message, error and stack; belongs on handlers, before any formatter."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record in place; every record passes."""
        try:
            record.msg = redact(record.getMessage())
        except Exception as error:  # the arguments do not fit: say so here, where nothing leaks
            record.msg = f"(a message that can't be written at {record.pathname}:{record.lineno}: {error})"
        record.args = ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, node, and error when there is one."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": self._node,
        }
        error = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        if error:
            line["error"] = error
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line)


def handler(form: str | None, node: str, stream: TextIO) -> logging.Handler:
    """Return a handler that writes to ``stream``: "text", "json", or None for text on a terminal and JSON otherwise."""
    made = logging.StreamHandler(stream)
    if (form or ("text" if stream.isatty() else "json")) == "json":
        made.setFormatter(JsonFormatter(node))
    else:
        made.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    made.addFilter(Redact())
    return made


def set_up(form: str | None, level: str, node: str, stream: TextIO | None = None) -> None:
    """Log what is at least ``level`` ("debug", "info", "warning", "error") to ``stream`` (stderr), and nowhere else."""
    logging.basicConfig(level=level.upper(), handlers=[handler(form, node, stream or sys.stderr)], force=True)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every file that moved
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # it tells of every request
    logging.getLogger("kubernetes").setLevel(logging.WARNING)  # and of every answer, body and all
