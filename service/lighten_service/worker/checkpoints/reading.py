"""Reading plain JSON strictly: what is not as it was written is not used."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

# JSON of dicts, lists, strings, numbers and truth values.
Facts = Mapping[str, Any]

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class InvalidStepResult(Exception):
    """A step result is damaged, of a newer format, or not of this job; the message says which."""


def parse(text: bytes) -> Facts:
    """Return a JSON object. Raises InvalidStepResult."""
    try:
        return typed(json.loads(text), dict, "the document")
    except ValueError as error:
        raise InvalidStepResult(f"it is no JSON: {error}") from error


def take(facts: Facts, name: str, kind: type[T]) -> T:
    """Return a value that must be there and of a kind. Raises InvalidStepResult."""
    return typed(facts.get(name), kind, name)


def take_message(facts: Facts, name: str, message: M) -> M:
    """Fill a message from its JSON; unknown fields are refused. Raises InvalidStepResult."""
    return filled(take(facts, name, dict), message)


def filled(facts: Facts, message: M) -> M:
    """Fill a message from its JSON; unknown fields are refused. Raises InvalidStepResult."""
    try:
        return json_format.ParseDict(dict(facts), message)
    except json_format.ParseError as error:
        raise InvalidStepResult(f"no {type(message).__name__}: {error}") from error


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON, to be read by `filled`. Doubles keep every bit."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def typed(value: object, kind: type[T], name: str) -> T:
    """Return a value if it is of a kind. Raises InvalidStepResult."""
    if type(value) is not kind:  # a bool is no int here
        raise InvalidStepResult(f"{name} is no {kind.__name__}")
    return value


def same(found: object, expected: object, name: str) -> None:
    """Raise InvalidStepResult unless two values are equal."""
    if found != expected:
        raise InvalidStepResult(f"{name} is {found}, and here it is {expected}")
