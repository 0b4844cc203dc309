"""Where two messages of one type differ."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def differences(left: Message, right: Message, path: str = "") -> Iterator[str]:
    """Yield the path of every field that differs, as deep as the messages agree on its presence."""
    for field in left.DESCRIPTOR.fields:
        mine, other = getattr(left, field.name), getattr(right, field.name)
        at = f"{path}{field.name}"
        if _is_list_of_messages(field) and len(mine) == len(other):
            for index, (one, two) in enumerate(zip(mine, other, strict=True)):
                yield from differences(one, two, f"{at}[{index}].")
        elif field.has_presence and left.HasField(field.name) != right.HasField(field.name):
            yield at
        elif isinstance(mine, Message):
            yield from differences(mine, other, f"{at}.")
        elif mine != other:
            yield at


def _is_list_of_messages(field: Any) -> bool:
    if not field.is_repeated or field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        return False
    return not field.message_type.GetOptions().map_entry
