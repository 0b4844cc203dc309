"""Checks a request against the rules in its descriptors, before any code reads it.

Fields that this server does not know are refused at any depth, so that an older server never drops
in silence what a newer client asked for. The rules are the ``(lighten.v1.bounds)`` options.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation, invalid

_NUMBERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_DOUBLE,
        FieldDescriptor.CPPTYPE_FLOAT,
    }
)
_SHOWN_CHARACTERS = 80


def validate(request: Message) -> None:
    """Check every field of a request, at any depth.

    Raises:
        InvalidArgument: reason UNKNOWN_FIELD when a field or an enum value is not known here, else
            INVALID_FIELD; the violations name every field at fault.
    """
    unknown = list(_unknown(request, ""))
    violations = unknown + list(_check(request, ""))
    if violations:
        raise invalid("UNKNOWN_FIELD" if unknown else "INVALID_FIELD", violations)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One field of a message with what its options ask for."""

    name: str
    number: int
    repeated: bool
    is_map: bool
    # Type of the field, or of a map's values.
    kind: int
    values: frozenset[int]
    bounds: pb.Bounds
    pattern: re.Pattern[str] | None
    # A number without presence: absent means 0, which can break `min`.
    bare_number: bool


@cache
def _rules(descriptor: Descriptor) -> tuple[_Rule, ...]:
    return tuple(_rule(field) for field in descriptor.fields)


def _rule(field: FieldDescriptor) -> _Rule:
    entry = field.message_type if field.message_type is not None else None
    is_map = entry is not None and entry.GetOptions().map_entry
    typed = entry.fields_by_name["value"] if is_map and entry is not None else field
    bounds = field.GetOptions().Extensions[pb.bounds]
    enum = typed.enum_type
    return _Rule(
        name=field.name,
        number=field.number,
        repeated=field.is_repeated,
        is_map=is_map,
        kind=typed.cpp_type,
        values=frozenset(enum.values_by_number) if enum is not None else frozenset(),
        bounds=bounds,
        pattern=re.compile(bounds.pattern) if bounds.pattern else None,
        bare_number=field.cpp_type in _NUMBERS and not field.has_presence and not field.is_repeated,
    )


def _unknown(message: Message, path: str) -> Iterator[Violation]:
    for field in UnknownFieldSet(message):  # type: ignore[attr-defined]  # stubs lack __iter__
        yield Violation(
            f"{path}{field.field_number}",
            f"this server knows no field {field.field_number} of {message.DESCRIPTOR.full_name}; "
            "leave it out, or use a newer server",
        )
    for inner, inner_path in _messages(message, path):
        yield from _unknown(inner, f"{inner_path}.")


def _messages(message: Message, path: str) -> Iterator[tuple[Message, str]]:
    """Yield the messages that stand directly in this one, with their paths."""
    for field, value in message.ListFields():
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            continue
        if not field.is_repeated:
            yield value, f"{path}{field.name}"
        else:
            for item, item_path in _items(value, f"{path}{field.name}"):
                if isinstance(item, Message):
                    yield item, item_path


def _items(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    pairs = value.items() if hasattr(value, "items") else enumerate(value)
    return ((item, f"{path}[{key}]") for key, item in pairs)


def _check(message: Message, path: str) -> Iterator[Violation]:
    present = {field.number: value for field, value in message.ListFields()}
    for rule in _rules(message.DESCRIPTOR):
        value = present.get(rule.number, 0 if rule.bare_number else None)
        at = f"{path}{rule.name}"
        if rule.number not in present and rule.bounds.required:
            yield Violation(at, "is required")
        elif value is None:
            continue
        elif rule.repeated:
            yield from _check_size(rule, value, at)
            for item, item_path in _items(value, at):
                yield from _check_value(rule, item, item_path)
        else:
            yield from _check_value(rule, value, at)


def _check_size(rule: _Rule, value: Any, path: str) -> Iterator[Violation]:
    most, least = rule.bounds.max_length, rule.bounds.min_items
    if most and len(value) > most:
        yield Violation(path, f"has {len(value)} entries; at most {most} are allowed")
    if len(value) < least:
        yield Violation(path, f"has {len(value)} entries; at least {least} are needed")


def _check_value(rule: _Rule, value: Any, path: str) -> Iterator[Violation]:
    if rule.kind == FieldDescriptor.CPPTYPE_MESSAGE:
        yield from _check(value, f"{path}.")
    elif rule.kind == FieldDescriptor.CPPTYPE_ENUM:
        if value not in rule.values:
            yield Violation(path, f"this server knows no value {value}; see GetCapabilities")
        elif rule.repeated and value == 0:
            yield Violation(path, "an entry of a list cannot be UNSPECIFIED; leave it out")
    elif rule.kind in _NUMBERS:
        yield from _check_number(rule.bounds, value, path)
    elif isinstance(value, str) and not rule.repeated:
        yield from _check_text(rule, value, path)


def _check_number(bounds: pb.Bounds, value: float, path: str) -> Iterator[Violation]:
    if not math.isfinite(value):
        yield Violation(path, f"must be a finite number, and is {value}")
    elif bounds.HasField("min") and value < bounds.min:
        yield Violation(path, f"must be at least {_number(bounds.min)}, and is {_number(value)}")
    elif bounds.HasField("max") and value > bounds.max:
        yield Violation(path, f"must be at most {_number(bounds.max)}, and is {_number(value)}")


def _check_text(rule: _Rule, value: str, path: str) -> Iterator[Violation]:
    longest = rule.bounds.max_length
    if longest and len(value) > longest:
        yield Violation(path, f"has {len(value)} characters; at most {longest} are allowed")
    elif rule.pattern is not None and not rule.pattern.fullmatch(value):
        yield Violation(path, f'"{_shown(value)}" does not match {rule.bounds.pattern}')


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e16 else str(value)


def _shown(value: str) -> str:
    return value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}…"
