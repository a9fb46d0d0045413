"""Label selectors: the API's validation by field, and of one that can't be obeyed the part that can.

Source: ``ValidateLabelSelector`` of Kubernetes' apimachinery (``pkg/apis/meta/v1/validation``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.watch import policy_schema as schema
from ebpfnet.watch.fields import BadField

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX = r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
_KEY = re.compile(f"({_PREFIX})?{_NAME}")
_VALUE = re.compile(f"({_NAME})?")


def convert_selector(given: schema.LabelSelector, field: str) -> Selector:
    """Return a selector in one order, so that equal ones are equal; raises ``BadField``."""
    wanted = [
        Requirement(_key(key, f"{field}.matchLabels"), frozenset((_value(value, f"{field}.matchLabels[{key}]"),)))
        for key, value in (given.match_labels or {}).items()
    ]
    wanted += [
        _requirement(each, f"{field}.matchExpressions[{index}]")
        for index, each in enumerate(given.match_expressions or ())
    ]
    return _ordered(wanted)


def widest(given: object) -> Selector:
    """Return what can be read of a selector (parsed JSON): it selects everything that the whole may have meant.

    All of its requirements must hold, so one that can't be read is left out.
    """
    if not isinstance(given, Mapping):
        return EVERYTHING
    labels, expressions = given.get("matchLabels"), given.get("matchExpressions")
    parts: list[dict[str, Any]] = []
    if isinstance(labels, Mapping):
        parts += [{"matchLabels": {key: value}} for key, value in labels.items()]
    if isinstance(expressions, list):
        parts += [{"matchExpressions": [each]} for each in expressions]
    wanted: list[Requirement] = []
    for part in parts:
        with suppress(msgspec.ValidationError, BadField):
            wanted += convert_selector(msgspec.convert(part, schema.LabelSelector), "").requirements
    return _ordered(wanted)


def _ordered(wanted: Iterable[Requirement]) -> Selector:
    return Selector(tuple(sorted(set(wanted), key=lambda r: (r.key, r.negated, sorted(r.values or ())))))


def _requirement(given: schema.LabelRequirement, field: str) -> Requirement:
    key, values = _key(given.key, f"{field}.key"), given.values or []
    negated = given.operator in {"NotIn", "DoesNotExist"}
    match given.operator:
        case "In" | "NotIn":
            if not values:
                raise BadField(f"{field}.values", f"missing, with operator {given.operator}")
            for index, value in enumerate(values):
                _value(value, f"{field}.values[{index}]")
            return Requirement(key, frozenset(values), negated)
        case "Exists" | "DoesNotExist":
            if values:
                raise BadField(f"{field}.values", f"not allowed with operator {given.operator}")
            return Requirement(key, None, negated)
    raise BadField(f"{field}.operator", f"{given.operator!r} is not In, NotIn, Exists or DoesNotExist")


def _key(text: str, field: str) -> str:
    if not _KEY.fullmatch(text):
        raise BadField(field, f"{text!r} is not a label's key")
    return text


def _value(text: str, field: str) -> str:
    if not _VALUE.fullmatch(text):
        raise BadField(field, f"{text!r} is not a label's value")
    return text
