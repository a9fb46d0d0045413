"""Label and field selectors, as far as clients of a node agent's kind use them."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.apiserver.failure import bad_request
from tests.apiserver.store import Item

Predicate = Callable[[Item], bool]
COMMA = re.compile(r",(?![^(]*\))")
SET = re.compile(r"^(\S+)\s+(in|notin)\s+\((.*)\)$")
EQUAL = re.compile(r"^([^=!\s]+)\s*(==|=|!=)\s*(\S*)$")
FIELDS: dict[str, Callable[[Item], str]] = {
    "metadata.name": lambda item: item.name,
    "metadata.namespace": lambda item: item.namespace,
    "spec.nodeName": lambda item: item.node,
}


def _label(text: str) -> Predicate:
    if match := SET.match(text):
        name, values = match[1], {value.strip() for value in match[3].split(",")}
        if match[2] == "in":
            return lambda item: item.labels.get(name) in values
        return lambda item: item.labels.get(name) not in values
    if match := EQUAL.match(text):
        name, value = match[1], match[3]
        if match[2] == "!=":  # also true where there is no such label
            return lambda item: item.labels.get(name) != value
        return lambda item: item.labels.get(name) == value
    if text.startswith("!"):
        return lambda item: text[1:] not in item.labels
    return lambda item: text in item.labels


def _field(resource: str, text: str) -> Predicate:
    match = EQUAL.match(text)
    if not match:
        raise bad_request(f'invalid field selector: "{text}"')
    name, value = match[1], match[3]
    if name not in FIELDS or (name == "spec.nodeName" and resource != "pods"):
        raise bad_request(f"field label not supported: {name}")
    get = FIELDS[name]
    if match[2] == "!=":
        return lambda item: get(item) != value
    return lambda item: get(item) == value


def parse(resource: str, namespace: str, labels: str, fields: str) -> Predicate | None:
    """Return what an object must satisfy, or None when all do. Raises Failure (400)."""
    tests = [_label(part.strip()) for part in COMMA.split(labels) if part.strip()]
    tests += [_field(resource, part.strip()) for part in fields.split(",") if part.strip()]
    if namespace:
        tests.append(lambda item: item.namespace == namespace)
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda item: all(test(item) for test in tests)
