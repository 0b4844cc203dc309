"""Options that commands share."""

from enum import StrEnum
from typing import Annotated

import typer

from lighten.client import Client


class Output(StrEnum):
    """What goes to stdout."""

    TEXT = "text"
    JSON = "json"


def _remember(ctx: typer.Context, value: Output) -> Output:
    # Errors are shown by the group, which sees no command's options.
    ctx.find_root().meta["lighten.json"] = value is Output.JSON
    return value


OutputOption = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        callback=_remember,
        help="json: one document, or one object a line for streams, and nothing else on stdout.",
    ),
]
TargetOption = Annotated[
    str, typer.Option("--target", envvar="LIGHTEN_TARGET", help="HOST:PORT of the server.")
]
ProjectOption = Annotated[
    str, typer.Option("--project", envvar="LIGHTEN_PROJECT", help="Project of the jobs.")
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Name of the job, or its id alone.", show_default=False)
]
ToOption = Annotated[str, typer.Option("--to", metavar="DIR", help="Folder for the artifacts.")]

DEFAULT_TARGET = "127.0.0.1:8470"
DEFAULT_PROJECT = "default"


def connect(target: str, project: str) -> Client:
    return Client(target, project)
