"""Commands on files: artifacts, download, upload."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lighten.cli import options, transfers
from lighten.cli.options import JobArgument, Output, OutputOption, ProjectOption, TargetOption
from lighten.cli.output import console, plain, print_json
from lighten.cli.render.report import artifacts_view


def artifacts(
    job: JobArgument,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the files that a job wrote."""
    with options.connect(target, project) as client:
        found = client.artifacts(job)
    if output is Output.JSON:
        print_json([plain(item) for item in found])
    elif found:
        console().print(artifacts_view(found))
    else:
        console().print("No artifacts: the job has not succeeded yet.")


def download(
    job: JobArgument,
    to: options.ToOption = ".",
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Download all artifacts of a job, checked against their digests.

    Files that are there already with the right digest are left alone.
    """
    with options.connect(target, project) as client, transfers.shown("download") as on_progress:
        paths = client.download(job, to, on_progress=on_progress)
    if output is Output.JSON:
        print_json([str(path) for path in paths])
    elif paths:
        for path in paths:
            print(path)
    else:
        console().print("No artifacts: the job has not succeeded yet.")


def upload(
    path: Annotated[Path, typer.Argument(exists=True, help="A file, or a folder with its files.")],
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Upload a model or dataset and print the URI that a spec then names."""
    with options.connect(target, project) as client, transfers.shown("upload") as on_progress:
        uploaded = client.upload(path, on_progress=on_progress)
    if output is Output.JSON:
        print_json(asdict(uploaded))
        return
    print(f"uri: {uploaded.uri}")
    if uploaded.sha256:
        print(f"sha256: {uploaded.sha256}")
