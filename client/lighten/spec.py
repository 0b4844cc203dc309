"""Job specs as people write them: YAML of the proto3 JSON of JobSpec.

Names are those of the proto fields. An enum value may leave out its type (``INT8`` for
``DATA_TYPE_INT8``), in either case. A message that only wraps a list may be given as the list, and
a duration as a number of seconds.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from lighten import v1 as pb
from lighten._spec_reader import Lines, SpecReader
from lighten._spec_writer import to_plain
from lighten._spec_yaml import parse_yaml
from lighten.errors import InvalidSpec

__all__ = ["dump_spec", "load_spec"]


def load_spec(source: str | os.PathLike[str] | Mapping[str, Any]) -> pb.JobSpec:
    """Read a spec from a file, from YAML or JSON text, or from a mapping.

    Args:
        source: a path; a string with a line break or a leading ``{`` is the text itself.

    Raises:
        InvalidSpec: the source cannot be read, or a key or value does not belong to a JobSpec;
            ``violations`` name every field at fault, with its line where there is text.
    """
    if isinstance(source, Mapping):
        return _read(source, Lines(), "the spec")
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return _read_text(source, "the spec")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise InvalidSpec(message, reason="SPEC_UNREADABLE") from error
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8 text"
        raise InvalidSpec(message, reason="SPEC_UNREADABLE") from error
    return _read_text(text, str(path))


def dump_spec(spec: pb.JobSpec) -> str:
    """Return a spec as YAML that ``load_spec`` reads back to an equal message."""
    plain = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    return yaml.safe_dump(
        to_plain(plain, pb.JobSpec.DESCRIPTOR), sort_keys=False, default_flow_style=None, width=100
    )


def _read_text(text: str, origin: str) -> pb.JobSpec:
    document, lines = parse_yaml(text, origin)
    if not isinstance(document, Mapping):
        message = f"{origin} is not a spec: it holds no keys such as `model` and `plan`"
        raise InvalidSpec(message, reason="SPEC_NOT_A_MAPPING")
    return _read(document, lines, origin)


def _read(document: Mapping[str, Any], lines: Lines, origin: str) -> pb.JobSpec:
    reader = SpecReader(lines)
    spec = pb.JobSpec()
    reader.fill(spec, document, ())
    if reader.violations:
        raise InvalidSpec(
            f"{origin} has {_count(len(reader.violations))}",
            reason="INVALID_SPEC",
            violations=reader.violations,
        )
    return spec


def _count(problems: int) -> str:
    return "a mistake" if problems == 1 else f"{problems} mistakes"
