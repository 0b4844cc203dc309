"""From errors to exit codes and short words on stderr."""

import json
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from lighten import errors

JOB_FAILED = 1
INVALID = 2
NOT_FOUND = 3
UNREACHABLE = 4
REFUSED = 5
NOT_PROVEN = 6
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 success; 1 the job failed or was cancelled; 2 wrong usage or invalid argument; "
    "3 not found; 4 the server cannot be reached or did not answer in time; 5 the server refused "
    "or failed; 6 `lighten check`: the file is not proven; 130 interrupted by Ctrl-C."
)

_CODES: tuple[tuple[type[errors.LightenError], int], ...] = (
    (errors.JobFailed, JOB_FAILED),
    (errors.JobCancelled, JOB_FAILED),
    (errors.InvalidArgument, INVALID),
    (errors.AlreadyExists, INVALID),
    (errors.OutOfRange, INVALID),
    (errors.NotFound, NOT_FOUND),
    (errors.Unavailable, UNREACHABLE),
    (errors.DeadlineExceeded, UNREACHABLE),
)

# Said by the message and the exit code already.
_ORDINARY = {("kind", "USER"), ("retryable", "false")}


class LightenGroup(TyperGroup):
    """Commands whose errors become a few words and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.LightenError as error:
            _show(error, as_json=ctx.meta.get("lighten.json", False))
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from error


def exit_code(error: errors.LightenError) -> int:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return REFUSED


def _show(error: errors.LightenError, *, as_json: bool) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if as_json:
        console.print(json.dumps({"error": _plain(error)}), markup=False)
        return
    listed = "; ".join(f"{item.field}: {item.description}" for item in error.violations)
    message = "the request is not valid" if listed == error.message else error.message
    console.print(Text.assemble(("Error: ", "bold red"), (message, "red")))
    for violation in error.violations:
        if violation.description == message:
            console.print(Text.assemble("  field: ", (violation.field, "bold")))
        else:
            console.print(Text.assemble(f"  {violation.field}: ", violation.description))
    facts = [f"reason: {error.reason}"] if error.reason else []
    facts += [
        f"{key}: {value}"
        for key, value in sorted(error.metadata.items())
        if (key, value) not in _ORDINARY
    ]
    if facts:
        console.print(Text("  " + ", ".join(facts), style="dim"))
    if error.reason == "TRANSPORT_UNAVAILABLE":
        console.print(
            "  Start one with `lighten-server`, name another with --target, or use `lighten run`.",
            markup=False,
        )


def _plain(error: errors.LightenError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "reason": error.reason,
        "message": error.message,
        "violations": [
            {"field": item.field, "description": item.description} for item in error.violations
        ],
        "metadata": error.metadata,
    }
