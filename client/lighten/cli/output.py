"""What goes to stdout: rich text for people, JSON for programs."""

import json
import sys
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console


def console() -> Console:
    """Return a console on stdout; long lines of a pipe are not broken."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=160)


def plain(message: Message) -> dict[str, Any]:
    """Return proto3 JSON with the names of the proto fields."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def print_json(document: Any) -> None:
    """Print one document."""
    print(json.dumps(document, indent=2))


def print_json_line(document: Any) -> None:
    """Print one object of a stream, at once."""
    print(json.dumps(document), flush=True)
