"""Proto3 JSON to the shorter form that people write."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from lighten._spec_reader import enum_prefix

# Proto3 JSON writes 64-bit integers as strings.
_INT64 = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def to_plain(values: dict[str, Any], message: Descriptor) -> dict[str, Any]:
    """Return a copy with enum values without their type, and integers as integers."""
    return {name: _field(value, message.fields_by_name[name]) for name, value in values.items()}


def _field(value: Any, found: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_item(item, found) for item in value]
    if found.message_type is not None and found.message_type.GetOptions().map_entry:
        inner = found.message_type.fields_by_name["value"]
        return {key: _item(item, inner) for key, item in value.items()}
    return _item(value, found)


def _item(value: Any, found: FieldDescriptor) -> Any:
    if isinstance(value, dict) and found.message_type is not None:
        return to_plain(value, found.message_type)
    if found.enum_type is not None:
        return str(value).removeprefix(enum_prefix(found.enum_type))
    if found.cpp_type in _INT64:
        return int(value)
    return value
