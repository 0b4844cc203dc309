"""The tables of docs/techniques.md, written from the protos: ``python -m tools.technique_tables``.

Each stands between ``<!-- table: MESSAGE -->`` and ``<!-- end -->``, and has the parameters of that
message with their comments.
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from lighten import v1 as pb
from tools.generate_stubs import PROTOS

DOCUMENT = PROTOS.parent / "docs" / "techniques.md"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Paths in a file's source information: messages and enums of a file, fields or values of these.
_MESSAGES, _ENUMS, _MEMBERS = 4, 5, 2
_NUMBERS = {
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "text",
}


def render(text: str) -> str:
    """Return the document with its tables as the protos have them now."""
    comments = _comments()
    return _BLOCK.sub(lambda found: found[1] + _table(found[2], comments) + found[3], text)


def _table(message: str, comments: dict[tuple[str, str], str]) -> str:
    fields = getattr(pb, message).DESCRIPTOR.fields
    if not fields:
        return "No parameters.\n"
    rows = ["| parameter | values | default | |", "| --- | --- | --- | --- |"]
    for field in fields:
        bounds = field.GetOptions().Extensions[pb.bounds]
        default = _short(field, bounds.default_value)
        cells = (f"`{field.name}`", _values(field, bounds), default, _comment(field, comments))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, ""])


def _comment(field: FieldDescriptor, comments: dict[tuple[str, str], str]) -> str:
    own = comments[field.containing_type.name, field.name]
    kind = field.enum_type
    if own or kind is None:
        return own
    default = comments[kind.name, kind.values[0].name]
    return f"{comments[kind.name, '']}{f' Default: {default}' if default else ''}"


def _values(field: FieldDescriptor, bounds: pb.Bounds) -> str:
    if field.enum_type is not None:
        names = [_short(field, value.name) for value in field.enum_type.values if value.number]
        return ", ".join(names)
    if field.message_type is not None:
        name, file = field.message_type.name, field.message_type.file.name
        if not file.startswith("lighten/"):
            return "seconds" if name == "Duration" else name
        return f"{'list of ' * field.is_repeated}[`{name}`](../protos/{file})"
    kind = _NUMBERS[field.cpp_type]
    limits = [f"{getattr(bounds, name):g}" for name in ("min", "max") if bounds.HasField(name)]
    return f"{kind}, {' to '.join(limits)}" if limits else kind


def _short(field: FieldDescriptor, value: str) -> str:
    """Return a value as people write it, without the enum's name."""
    if not value:
        plain = field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not field.has_presence
        return "`false`" if plain else ""
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        value = value.removeprefix(prefix)
    return f"`{value}`"


def _comments() -> dict[tuple[str, str], str]:
    """Return the comments of fields and enum values, by the names of type and member; that of an
    enum itself has no member."""
    found = {}
    for file in _described().file:
        types = {_MESSAGES: file.message_type, _ENUMS: file.enum_type}
        for location in file.source_code_info.location:
            path, comment = list(location.path), " ".join(location.leading_comments.split())
            if path[:1] == [_ENUMS] and len(path) == 2:
                found[file.enum_type[path[1]].name, ""] = comment
            elif path and path[0] in types and path[2:3] == [_MEMBERS] and len(path) == 4:
                owner = types[path[0]][path[1]]
                members = owner.field if path[0] == _MESSAGES else owner.value
                found[owner.name, members[path[3]].name] = comment
    return found


def _described() -> FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "protos.binpb"
        arguments = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={target}",
            str(PROTOS / "lighten/v1/techniques.proto"),
            str(PROTOS / "lighten/v1/quantization.proto"),
            str(PROTOS / "lighten/v1/spec.proto"),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")
        return FileDescriptorSet.FromString(target.read_bytes())


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text()))
    sys.exit(0)
