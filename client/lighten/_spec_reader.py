"""Plain values (from YAML, JSON or Python) to a message, with every mistake named by its path."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from lighten.errors import Violation

# Keys and list positions from the top of the spec.
Path = tuple[str | int, ...]

_DURATION = "google.protobuf.Duration"


@dataclass(slots=True)
class Lines:
    """Where each key stands in the text; empty where there was no text."""

    by_path: dict[Path, int] = field(default_factory=dict)

    def wrap(self, path: Path, name: str) -> None:
        """Follow a value that moves one level down, under ``name``."""
        for old, line in list(self.by_path.items()):
            if old[: len(path)] == path:
                self.by_path[(*path, name, *old[len(path) :])] = line

    @staticmethod
    def name(path: Path) -> str:
        """Return a path as people write it: ``plan.steps.steps[1].calibrate``."""
        name = ""
        for part in path:
            name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
        return name


class SpecReader:
    """Fills messages and collects what is wrong instead of stopping at the first mistake."""

    def __init__(self, lines: Lines) -> None:
        self.violations: list[Violation] = []
        self._lines = lines

    def fill(self, message: Message, values: object, path: Path) -> None:
        """Set the fields of a message from a mapping."""
        if not isinstance(values, Mapping):
            self._refuse(path, f"expected keys and values, not {_shown(values)}")
            return
        fields = message.DESCRIPTOR.fields_by_name
        camel_case = message.DESCRIPTOR.fields_by_camelcase_name
        seen = set()
        for key, value in values.items():
            inner = (*path, str(key))
            found = cast("FieldDescriptor | None", fields.get(str(key)) or camel_case.get(str(key)))
            if found is None:
                self._refuse(inner, f"unknown key{_nearest(str(key), fields)}")
            elif found.name in seen:
                self._refuse(inner, f"stands twice; keep {found.name} alone")
            elif value is None:
                self._refuse(inner, _no_value(found))
            elif not self._taken(message, found, inner):
                seen.add(found.name)
                self._set(message, found, value, inner)

    def _taken(self, message: Message, found: FieldDescriptor, path: Path) -> bool:
        """Refuse a second member of a oneof."""
        oneof = found.containing_oneof
        set_before = message.WhichOneof(oneof.name) if oneof else None
        if set_before is None:
            return False
        self._refuse(path, f"stands beside {set_before}; only one of them can be set here")
        return True

    def _set(self, message: Message, found: FieldDescriptor, value: Any, path: Path) -> None:
        if _is_map(found):
            self._set_map(message, found, value, path)
        elif found.is_repeated:
            self._set_list(message, found, value, path)
        elif found.message_type is None:
            self._set_scalar(message, found, value, path)
        elif found.message_type.full_name == _DURATION:
            seconds = f"{value}s" if _is_number(value) else value
            self._parse(message, found, seconds, path, "seconds, for example 90 or 90s", value)
        else:
            target = getattr(message, found.name)
            target.SetInParent()
            self.fill(target, self._wrapped(found, value, path), path)

    def _wrapped(self, found: FieldDescriptor, value: Any, path: Path) -> Any:
        """Let a list stand for a message that only wraps one, such as ``plan.steps``."""
        wrapper = found.message_type
        fields = wrapper.fields if wrapper is not None else []
        if isinstance(value, list) and len(fields) == 1 and fields[0].is_repeated:
            self._lines.wrap(path, fields[0].name)
            return {fields[0].name: value}
        return value

    def _set_list(self, message: Message, found: FieldDescriptor, value: Any, path: Path) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str):
            self._refuse(path, f"expected a list, not {_shown(value)}")
            return
        for index, item in enumerate(value):
            inner = (*path, index)
            if found.message_type is not None:
                self.fill(getattr(message, found.name).add(), item, inner)
            else:
                self._set_scalar(message, found, item, inner)

    def _set_map(self, message: Message, found: FieldDescriptor, value: Any, path: Path) -> None:
        if not isinstance(value, Mapping):
            self._refuse(path, f"expected keys and values, not {_shown(value)}")
            return
        for key, item in value.items():
            inner = (*path, str(key))
            self._parse(message, found, {str(key): item}, inner, "text; put it in quotes", item)

    def _set_scalar(self, message: Message, found: FieldDescriptor, value: Any, path: Path) -> None:
        json_value, expected = value, "a number"
        if found.enum_type is not None:
            json_value, expected = _enum_value(found.enum_type, value)
        elif found.type == FieldDescriptor.TYPE_STRING:
            expected = "text; put it in quotes"
        elif found.type == FieldDescriptor.TYPE_BOOL:
            expected = "true or false"
        if found.is_repeated:
            json_value = [json_value]
        self._parse(message, found, json_value, path, expected, value)

    def _parse(
        self,
        message: Message,
        found: FieldDescriptor,
        json_value: Any,
        path: Path,
        expected: str,
        written: Any,
    ) -> None:
        """Let protobuf read one value, and merge it; ``written`` is what an error shows."""
        parsed = type(message)()
        try:
            json_format.ParseDict({found.name: json_value}, parsed)
        except (json_format.ParseError, TypeError, ValueError):
            self._refuse(path, f"{_shown(written)} does not fit; expected {expected}")
            return
        message.MergeFrom(parsed)

    def _refuse(self, path: Path, description: str) -> None:
        line = self._lines.by_path.get(path)
        where = f" (line {line})" if line else ""
        self.violations.append(Violation(Lines.name(path), description + where))


def enum_prefix(enum: EnumDescriptor) -> str:
    """Return what every value of an enum begins with, for example ``DATA_TYPE_``."""
    return enum.values[0].name.removesuffix("UNSPECIFIED")


def _enum_value(enum: EnumDescriptor, value: Any) -> tuple[Any, str]:
    """Return the full name of a value, and the names to offer where there is none."""
    prefix = enum_prefix(enum)
    names = [item.name.removeprefix(prefix) for item in enum.values if item.number]
    expected = f"one of {', '.join(names)}"
    if not isinstance(value, str):
        return value, expected
    name = value.upper().replace(".", "_").replace("-", "_").removeprefix(prefix)
    if name not in names:
        expected += _nearest(name, names)
    return prefix + name, expected


def _is_map(found: FieldDescriptor) -> bool:
    return found.message_type is not None and found.message_type.GetOptions().map_entry


def _no_value(found: FieldDescriptor) -> str:
    if found.message_type is not None and not found.is_repeated:
        return "has no value; write {} if its defaults are meant, or leave the key out"
    return "has no value; give one or leave the key out"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(name: str, names: Any) -> str:
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
