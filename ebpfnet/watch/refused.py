"""What a policy that can't be obeyed still does: it shuts the pods that it selects off, as far as it can be read.

Left out, or kept as it was before, it would let pass what its author forbids. So it is narrowed in nothing: of its
selector the parts that make no sense are left out, and a direction that it may mean is one that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ebpfnet.model.facts import Action, ClusterNetworkPolicy, ClusterRule, NetworkPolicy, Ref, Tier
from ebpfnet.model.labels import EVERYTHING, Selector
from ebpfnet.watch import policy_schema as schema
from ebpfnet.watch.policies import DIRECTIONS, Modes, modes_of
from ebpfnet.watch.selectors import widest

TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
PRIORITY_MAX = 1000
DENY = (ClusterRule("", Action.DENY),)


def isolating(ref: Ref, item: Mapping[str, Any]) -> NetworkPolicy:
    """Return what is left of a NetworkPolicy: nothing is allowed in its directions."""
    spec = item.get("spec")
    spec = {} if spec is None else spec
    directions, selector = _types(spec), spec.get("podSelector") if isinstance(spec, Mapping) else None
    modes = _modes(ref, item)
    return NetworkPolicy(
        ref,
        widest(selector),
        () if "Ingress" in directions else None,
        () if "Egress" in directions else None,
        modes.audited,
        modes.graceful,
        refused=True,
        generation=_generation(item),
    )


def denying(ref: Ref, item: Mapping[str, Any]) -> ClusterNetworkPolicy:
    """Return what is left of a ClusterNetworkPolicy: everything is denied in its directions, as early as it may be."""
    spec = item.get("spec")
    known = _is_known(spec, schema.ClusterNetworkPolicySpec)
    spec = spec if isinstance(spec, Mapping) else {}
    tier, priority = spec.get("tier"), spec.get("priority")
    modes = _modes(ref, item)
    return ClusterNetworkPolicy(
        ref,
        TIERS.get(tier, Tier.ADMIN) if isinstance(tier, str) else Tier.ADMIN,
        priority if type(priority) is int and 0 <= priority <= PRIORITY_MAX else 0,
        *_subject(spec.get("subject")),
        DENY if spec.get("ingress") or not known else (),
        DENY if spec.get("egress") or not known else (),
        modes.audited,
        modes.graceful,
        refused=True,
        generation=_generation(item),
    )


def _types(spec: object) -> tuple[str, ...]:
    if not isinstance(spec, Mapping) or not _is_known(spec, schema.NetworkPolicySpec):
        return DIRECTIONS
    types = spec.get("policyTypes")
    if not types and (types is None or isinstance(types, list)):
        return DIRECTIONS[: 2 if spec.get("egress") else 1]
    if isinstance(types, list) and all(each in DIRECTIONS for each in types):
        return tuple(types)
    return DIRECTIONS


def _subject(given: object) -> tuple[Selector, Selector]:
    """Return the selectors of namespaces and pods."""
    given = {key: value for key, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    match list(given.items()):
        case [("namespaces", namespaces)]:
            return widest(namespaces), EVERYTHING
        case [("pods", Mapping() as pods)]:
            return widest(pods.get("namespaceSelector")), widest(pods.get("podSelector"))
    return EVERYTHING, EVERYTHING


def _is_known(spec: object, struct: type) -> bool:
    """Say whether a spec has no field but those that its kind has: one of these may be meant by another name."""
    names = {field.encode_name for field in msgspec.structs.fields(struct)}
    return isinstance(spec, Mapping) and set(spec) <= names


def _modes(ref: Ref, item: Mapping[str, Any]) -> Modes:
    meta = item.get("metadata")
    given = meta.get("annotations") if isinstance(meta, Mapping) else None
    texts = given.items() if isinstance(given, Mapping) else ()
    return modes_of(ref, {key: value for key, value in texts if isinstance(key, str) and isinstance(value, str)})


def _generation(item: Mapping[str, Any]) -> int:
    meta = item.get("metadata")
    return schema.version(meta.get("generation")) if isinstance(meta, Mapping) else 0
