"""Commands on tokens: for operators, who keep the server's token file."""

import hashlib
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from lighten.cli.options import Output, OutputOption
from lighten.cli.output import print_json
from lighten.errors import InvalidArgument

app = typer.Typer(no_args_is_help=True)

# Tells secret scanners, and people, what it is.
_PREFIX = "lighten_"
_RANDOM_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_PROJECT = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?|\*")


class Role(StrEnum):
    """What a token is good for; each role includes those before it."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


@app.callback()
def _group() -> None:
    """Make tokens for callers of a server."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will have it; stands in the server's log.")],
    project: Annotated[
        str, typer.Option(help='Its project; "*" for every one.', show_default=False)
    ],
    role: Annotated[Role, typer.Option(help="What it is good for.")] = Role.SUBMITTER,
    days: Annotated[
        int | None, typer.Option(min=1, help="Days until it expires; without it: never.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a token: stdout gets what to append to the server's token file, the terminal the token.

    The token is shown this once; the file has its hash alone.
    """
    _check("NAME", name, _NAME)
    _check("--project", project, _PROJECT)
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    row = _row(name, project, role, token, days)
    if output is Output.JSON:
        print_json({"token": token, "row": row})
        return
    sys.stdout.write(f"\n{row}")
    sys.stdout.flush()
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"\nThe token of {name}, which nobody can show again:\n{token}", markup=False
    )


def _row(name: str, project: str, role: Role, token: str, days: int | None) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\nproject = "{project}"\n'
    row += f'role = "{role}"\n'
    if days is not None:
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        row += f"expires = {expires.isoformat()}\n"
    return row


def _check(what: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise InvalidArgument(
            f'{what}: "{value}" does not match {pattern.pattern}', reason="INVALID_NAME"
        )
