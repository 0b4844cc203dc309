"""The command that shows a job's report."""

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lighten import errors
from lighten.cli import options
from lighten.cli.options import JobArgument, Output, OutputOption, ProjectOption, TargetOption
from lighten.cli.output import print_json


def report(
    job: JobArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="Where to save it. Default: a temporary folder."),
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Save the report, and print its path alone.")
    ] = False,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Open the report of a job in the browser, or save it: one HTML file that needs no network."""
    with options.connect(target, project) as client:
        text = client.report(job)
    path = _save(text, to)
    opened = not no_open and webbrowser.open(path.as_uri())
    if output is Output.JSON:
        print_json({"path": str(path), "opened": opened})
        return
    print(path)
    if not opened and not no_open:
        Console(stderr=True).print("No browser was found: open the file in one.")


def _save(text: str, to: Path | None) -> Path:
    """Write the report and return its absolute path."""
    try:
        if to is None:
            to = Path(tempfile.mkdtemp(prefix="lighten-")) / "report.html"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"cannot write {to}: {error.strerror or error}"
        raise errors.TransferError(message, reason="FILE_ERROR") from error
    return to.resolve()
