"""Checks a request against the rules in its descriptors, before any code reads it.

Fields that this server does not know are refused at any depth, so that an older server never drops
in silence what a newer client asked for. The rules are the ``(lighten.v1.bounds)`` options.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

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
    found = _Found([], [])
    _check(request, "", found)
    if found.unknown or found.broken:
        reason = "UNKNOWN_FIELD" if found.unknown else "INVALID_FIELD"
        raise invalid(reason, found.unknown + found.broken)


class _Found(NamedTuple):
    unknown: list[Violation]
    broken: list[Violation]

    def add(self, path: str, description: str) -> None:
        self.broken.append(Violation(path, description))


@dataclass(frozen=True, slots=True)
class _Rule:
    """One field of a message with what its options ask for, as quick to read as can be."""

    name: str
    repeated: bool
    is_map: bool
    # Type of the field, or of a map's values.
    is_message: bool
    is_number: bool
    values: frozenset[int] | None
    required: bool
    minimum: float | None
    maximum: float | None
    max_length: int
    min_items: int
    pattern: re.Pattern[str] | None


class _Rules(NamedTuple):
    """The fields of a type of message: all of them, and those that break a rule by absence."""

    by_number: dict[int, _Rule]
    needed: tuple[tuple[int, _Rule], ...]


@cache
def _rules(descriptor: Descriptor) -> _Rules:
    rules = {field.number: _rule(field) for field in descriptor.fields}
    needed = (
        (field.number, rules[field.number])
        for field in descriptor.fields
        if rules[field.number].required or _is_bare_number(field)
    )
    return _Rules(rules, tuple(needed))


def _rule(field: FieldDescriptor) -> _Rule:
    entry = field.message_type
    is_map = entry is not None and entry.GetOptions().map_entry
    typed = entry.fields_by_name["value"] if is_map and entry is not None else field
    bounds = field.GetOptions().Extensions[pb.bounds]
    enum = typed.enum_type
    return _Rule(
        name=field.name,
        repeated=field.is_repeated,
        is_map=is_map,
        is_message=typed.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE,
        is_number=typed.cpp_type in _NUMBERS,
        values=frozenset(enum.values_by_number) if enum is not None else None,
        required=bounds.required,
        minimum=bounds.min if bounds.HasField("min") else None,
        maximum=bounds.max if bounds.HasField("max") else None,
        max_length=bounds.max_length,
        min_items=bounds.min_items,
        pattern=re.compile(bounds.pattern) if bounds.pattern else None,
    )


def _is_bare_number(field: FieldDescriptor) -> bool:
    """Whether absent means 0, which can break `min`."""
    return field.cpp_type in _NUMBERS and not field.has_presence and not field.is_repeated


def _check(message: Message, path: str, found: _Found) -> None:
    for field in UnknownFieldSet(message):  # type: ignore[attr-defined]  # stubs lack __iter__
        description = (
            f"this server knows no field {field.field_number} of {message.DESCRIPTOR.full_name}; "
            "leave it out, or use a newer server"
        )
        found.unknown.append(Violation(f"{path}{field.field_number}", description))
    rules = _rules(message.DESCRIPTOR)
    present = {field.number: value for field, value in message.ListFields()}
    for number, rule in rules.needed:
        if number not in present:
            _check_absent(rule, f"{path}{rule.name}", found)
    for number, value in present.items():
        rule = rules.by_number[number]
        if rule.repeated:
            _check_entries(rule, value, f"{path}{rule.name}", found)
        else:
            _check_value(rule, value, f"{path}{rule.name}", found)


def _check_absent(rule: _Rule, path: str, found: _Found) -> None:
    if rule.required:
        found.add(path, "is required")
    else:
        _check_number(rule, 0, path, found)


def _check_entries(rule: _Rule, value: Any, path: str, found: _Found) -> None:
    if rule.max_length and len(value) > rule.max_length:
        found.add(path, f"has {len(value)} entries; at most {rule.max_length} are allowed")
    if len(value) < rule.min_items:
        found.add(path, f"has {len(value)} entries; at least {rule.min_items} are needed")
    for key, item in value.items() if rule.is_map else enumerate(value):
        _check_value(rule, item, f"{path}[{key}]", found)


def _check_value(rule: _Rule, value: Any, path: str, found: _Found) -> None:
    if rule.is_message:
        _check(value, f"{path}.", found)
    elif rule.values is not None:
        if value not in rule.values:
            found.add(path, f"this server knows no value {value}; see GetCapabilities")
        elif rule.repeated and value == 0:
            found.add(path, "an entry of a list cannot be UNSPECIFIED; leave it out")
    elif rule.is_number:
        _check_number(rule, value, path, found)
    elif isinstance(value, str) and not rule.repeated:
        _check_text(rule, value, path, found)


def _check_number(rule: _Rule, value: float, path: str, found: _Found) -> None:
    if not math.isfinite(value):
        found.add(path, f"must be a finite number, and is {value}")
    elif rule.minimum is not None and value < rule.minimum:
        found.add(path, f"must be at least {_number(rule.minimum)}, and is {_number(value)}")
    elif rule.maximum is not None and value > rule.maximum:
        found.add(path, f"must be at most {_number(rule.maximum)}, and is {_number(value)}")


def _check_text(rule: _Rule, value: str, path: str, found: _Found) -> None:
    if rule.max_length and len(value) > rule.max_length:
        found.add(path, f"has {len(value)} characters; at most {rule.max_length} are allowed")
    elif rule.pattern is not None and not rule.pattern.fullmatch(value):
        found.add(path, f'"{_shown(value)}" does not match {rule.pattern.pattern}')


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e16 else str(value)


def _shown(value: str) -> str:
    return value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}…"
