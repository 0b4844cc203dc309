"""Reads the operator's pod template: what every worker pod starts from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lighten_service.executors.kubernetes import naming, quantities
from lighten_service.executors.kubernetes.merging import MERGE_KEYS

_TOP = frozenset({"apiVersion", "kind", "metadata", "spec"})
_METADATA = frozenset({"labels", "annotations"})
_RESERVED = frozenset({"ticket", "shm"})
_LISTS = ("containers", "initContainers", "volumes", "imagePullSecrets")
_CONTAINER_LISTS = ("env", "volumeMounts")
_COUNTED = ("cpu", "memory")


class TemplateError(ValueError):
    """The template cannot work; the message names each place and what is wrong."""


def load(path: Path) -> dict[str, Any]:
    """Read a pod template: YAML with ``metadata`` (labels, annotations) and ``spec``.

    Raises:
        TemplateError: it cannot be read, or is no pod that a worker can run in.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise TemplateError(f"{path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise TemplateError(f"{path} is no pod: write metadata and spec")
    if problems := list(_problems(document)):
        raise TemplateError(f"{path}: {'; '.join(problems)}")
    # The kind is a help for editors: what is merged is a PodTemplateSpec.
    return {key: document[key] for key in ("metadata", "spec") if document.get(key)}


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    for key in document:
        if key not in _TOP:
            yield f"{key}: a pod template has metadata and spec alone"
    for name in ("metadata", "spec"):
        if not isinstance(document.get(name) or {}, Mapping):
            yield f"{name}: not a mapping"
            return
    metadata, spec = document.get("metadata") or {}, document.get("spec") or {}
    for key in metadata:
        if key not in _METADATA:
            yield f"metadata.{key}: labels and annotations alone can be set"
    shape = list(_list_problems(spec, "spec", _LISTS))
    yield from shape
    if shape:
        return
    if spec.get("restartPolicy", "Never") != "Never":
        yield "spec.restartPolicy: a worker pod is never restarted; leave it out"
    for volume in spec.get("volumes", ()):
        if volume["name"] in _RESERVED:
            yield f'spec.volumes: "{volume["name"]}" is Lighten\'s own; choose another name'
    for kind in ("containers", "initContainers"):
        for container in spec.get(kind, ()):
            yield from _container_problems(container, kind, spec)


def _list_problems(owner: Mapping[str, Any], where: str, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        items = owner.get(name, [])
        if not isinstance(items, list):
            yield f"{where}.{name}: not a list"
            continue
        key, seen = MERGE_KEYS[name], set()
        for index, item in enumerate(items):
            value = item.get(key) if isinstance(item, Mapping) else None
            if not isinstance(value, str) or not value:
                yield f"{where}.{name}[{index}].{key}: missing"
            elif value in seen:
                yield f'{where}.{name}[{index}].{key}: "{value}" is there twice'
            seen.add(value)


def _container_problems(
    container: Mapping[str, Any], kind: str, spec: Mapping[str, Any]
) -> Iterator[str]:
    where = f"spec.{kind}[{container['name']}]"
    shape = list(_list_problems(container, where, _CONTAINER_LISTS))
    yield from shape
    if shape:
        return
    known = {naming.SCRATCH, *(volume["name"] for volume in spec.get("volumes", ()))}
    for mount in container.get("volumeMounts", ()):
        if mount.get("name") not in known:
            yield f'{where}.volumeMounts: there is no volume "{mount.get("name", "")}"'
    if kind == "containers" and container["name"] == naming.WORKER:
        if "args" in container:
            yield f"{where}.args: Lighten's own; an interpreter of yours goes into command"
        return
    yield from _resource_problems(container, where)


def _resource_problems(container: Mapping[str, Any], where: str) -> Iterator[str]:
    """Quotas and Kueue count every container, so each must say what it takes."""
    resources = container.get("resources")
    for kind in ("requests", "limits"):
        amounts = resources.get(kind) if isinstance(resources, Mapping) else None
        for name in _COUNTED:
            amount = amounts.get(name) if isinstance(amounts, Mapping) else None
            if amount is None:
                yield f"{where}.resources.{kind}.{name}: missing; quotas count every container"
                continue
            try:
                quantities.parse(str(amount))
            except ValueError as error:
                yield f"{where}.resources.{kind}.{name}: {error}"
