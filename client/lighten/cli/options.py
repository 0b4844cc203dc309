"""Options that commands share."""

import warnings
from contextvars import ContextVar
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from lighten import config
from lighten.client import Client
from lighten.config import DEFAULT_PROJECT, DEFAULT_TARGET


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
    str | None,
    typer.Option(
        "--target",
        envvar="LIGHTEN_TARGET",
        help=f"HOST:PORT of the server, or grpcs://HOST:PORT for TLS. [default: {DEFAULT_TARGET}]",
    ),
]
ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project",
        envvar="LIGHTEN_PROJECT",
        help=f"Project of the jobs. [default: {DEFAULT_PROJECT}]",
    ),
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Name of the job, or its id alone.", show_default=False)
]
ToOption = Annotated[str, typer.Option("--to", metavar="DIR", help="Folder for the artifacts.")]

# What stands before the command; commands see their own options alone.
_given: ContextVar[dict[str, str | None]] = ContextVar("given")


def access(
    profile: Annotated[
        str | None,
        typer.Option(
            envvar="LIGHTEN_PROFILE",
            help="Server of the configuration file (~/.config/lighten/config.toml).",
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="LIGHTEN_TOKEN_FILE",
            help="Holds your token. LIGHTEN_TOKEN is the token itself.",
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", envvar="LIGHTEN_CA", help="Private CA of the server's certificate."
        ),
    ] = None,
    cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", envvar="LIGHTEN_CERT", help="Your client certificate."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="FILE", envvar="LIGHTEN_KEY", help="Its private key.")
    ] = None,
) -> None:
    """Make neural networks smaller and faster."""
    files = {"token_file": token_file, "ca": ca, "cert": cert, "key": key}
    _given.set({"profile": profile, **files})


def connect(target: str | None, project: str | None) -> Client:
    """Return a client of the server that options, environment and configuration file name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", config.ReadableByOthers)
        connection = config.load(**_given.get(), target=target, project=project)
    for warning in caught:
        Console(stderr=True, soft_wrap=True).print(f"Warning: {warning.message}", markup=False)
    return Client(**asdict(connection))
