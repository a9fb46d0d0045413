"""Errors that a user can act on, each with its own exit code. Everything else is a bug and shows a traceback."""

from __future__ import annotations

from typing import ClassVar


class EbpfnetError(Exception):
    """An expected failure; the text says what happened and what to do about it."""

    exit_code: ClassVar[int] = 1


class NotRoot(EbpfnetError):
    """A capability is missing."""

    exit_code = 3


class NoBpffs(EbpfnetError):
    """The pin directory is not on a BPF filesystem."""

    exit_code = 4


class NotPinned(EbpfnetError):
    """The pin directory takes nothing more, or does not give what is in it."""

    exit_code = 10


class StaleLayout(EbpfnetError):
    """A pinned map is not what this version needs."""

    exit_code = 5


class MissingFeature(EbpfnetError):
    """The kernel lacks something (BTF, a map type, a helper)."""

    exit_code = 6


class LoadFailed(MissingFeature):
    """The verifier refused a program."""


class CompileFailed(EbpfnetError):
    """BCC is missing or did not compile the datapath."""

    exit_code = 7


class NotRunning(EbpfnetError):
    """There is no such node, lab, agent or pin directory."""

    exit_code = 8


class BadInput(EbpfnetError):
    """A file can't be used."""

    exit_code = 9


class Disagreement(EbpfnetError):
    """The datapath does not do what its tables say."""

    exit_code = 11
