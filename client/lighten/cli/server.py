"""Commands on servers: start one, ask what one can do; and the version."""

import importlib.util
import os
import sys

import typer

from lighten import errors
from lighten._version import client_version
from lighten.cli import options
from lighten.cli.options import Output, OutputOption, ProjectOption, TargetOption
from lighten.cli.output import console, plain, print_json
from lighten.cli.render.jobs import capabilities as capabilities_view

SERVER_MODULE = "lighten_service.server"
# Some of what each extra installs.
_MODULES = {
    "server": ("aiohttp", "sqlalchemy", "pydantic_settings"),
    "worker": ("torch", "onnxruntime", "aimet_onnx"),
}


def capabilities(
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show what a server can do: techniques with parameters, formats, types, limits."""
    with options.connect(target, project) as client:
        answer = client.capabilities()
    if output is Output.JSON:
        print_json(plain(answer))
    else:
        console().print(capabilities_view(answer))


def server(
    ctx: typer.Context,
) -> None:
    """Run lighten-server in this terminal; arguments are passed on to it."""
    require_server()
    sys.stdout.flush()
    arguments = [sys.executable, "-m", SERVER_MODULE, *ctx.args]
    # The server takes the place of this process, so that signals reach it.
    os.execv(sys.executable, arguments)  # noqa: S606  no shell is wanted


def version(output: OutputOption = Output.TEXT) -> None:
    """Show the version of this client."""
    if output is Output.JSON:
        print_json({"version": client_version()})
    else:
        print(f"lighten {client_version()}")


def require_server(*, worker: bool = False) -> None:
    """Check that the server (and worker) part is installed.

    Raises:
        FailedPrecondition: names the extra to install.
    """
    _require("server", "worker") if worker else _require("server")


def require_worker() -> None:
    """Check that the worker part is installed.

    Raises:
        FailedPrecondition: names the extra to install.
    """
    _require("worker")


def _require(*extras: str) -> None:
    for extra in extras:
        missing = [name for name in _MODULES[extra] if importlib.util.find_spec(name) is None]
        if missing:
            raise errors.FailedPrecondition(
                f"the {extra} part of Lighten is not installed (missing: {', '.join(missing)}); "
                f"run in Lighten's folder: pip install '.[{','.join(extras)}]'",
                reason="EXTRA_MISSING",
            )
