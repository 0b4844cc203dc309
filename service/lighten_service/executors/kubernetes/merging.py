"""Merges one part of a pod into another, lists of named things by their names."""

from collections.abc import Mapping, Sequence
from typing import Any

# Lists of objects that are one thing by this key, as in the API's own merge patches.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
}
# Lists to which the upper layer adds.
_JOINED = frozenset({"tolerations", "envFrom"})
# One thing each: half of one layer's and half of the other's would be neither.
_WHOLE = frozenset({"env", "seccompProfile"})


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on it; neither is changed.

    Objects merge key by key, the lists of ``MERGE_KEYS`` entry by entry, tolerations are joined.
    Anything else is replaced, as are variables and seccomp profiles.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key not in _WHOLE:
            merged[key] = merge(below, value)
        elif isinstance(below, list) and key in MERGE_KEYS:
            merged[key] = _merge_named(below, value, MERGE_KEYS[key], whole=key in _WHOLE)
        elif isinstance(below, list) and key in _JOINED:
            merged[key] = [*below, *(item for item in value if item not in below)]
        else:
            merged[key] = value
    return merged


def _merge_named(
    base: Sequence[Mapping[str, Any]], over: Sequence[Mapping[str, Any]], key: str, *, whole: bool
) -> list[Mapping[str, Any]]:
    merged: dict[Any, Mapping[str, Any]] = {item[key]: item for item in base}
    for item in over:
        merged[item[key]] = item if whole else merge(merged.get(item[key], {}), item)
    return list(merged.values())
