"""YAML text to plain values, with the line of every key, and without silent surprises."""

from typing import Any

import yaml

from lighten._spec_reader import Lines, Path
from lighten.errors import InvalidSpec, Violation


def parse_yaml(text: str, origin: str) -> tuple[Any, Lines]:
    """Return the one document of a text and the lines of its keys.

    Raises:
        InvalidSpec: not YAML, more than one document, or a key that stands twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines = Lines()
        if node is None:
            return None, lines
        _walk(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, origin) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = f"{origin} is not YAML: {error}"
        raise InvalidSpec(message, reason="SPEC_NOT_YAML") from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: Path, lines: Lines) -> None:
    """Note lines; refuse a key that stands twice, of which YAML would keep the last."""
    lines.by_path[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        _walk_mapping(node, path, lines)


def _walk_mapping(node: yaml.MappingNode, path: Path, lines: Lines) -> None:
    seen: set[Path] = set()
    for key, value in node.value:
        inner = (*path, str(key.value))
        if inner in seen:
            where = Lines.name(inner)
            raise InvalidSpec(
                f"line {key.start_mark.line + 1}: the key {where} stands twice",
                reason="DUPLICATE_KEY",
                violations=[Violation(where, "stands twice; keep one of the two")],
            )
        seen.add(inner)
        _walk(value, inner, lines)
        lines.by_path[inner] = key.start_mark.line + 1


def _not_yaml(error: yaml.MarkedYAMLError, origin: str) -> InvalidSpec:
    mark = error.problem_mark or error.context_mark
    where = f", line {mark.line + 1}" if mark else ""
    problem = error.problem or error.context or "cannot be read"
    return InvalidSpec(f"{origin}{where}: not YAML: {problem}", reason="SPEC_NOT_YAML")
