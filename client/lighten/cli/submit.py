"""The command that creates a job."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lighten import errors
from lighten import v1 as pb
from lighten.cli import follow, options, transfers
from lighten.cli.inputs import LocalInput, read_spec, upload_inputs
from lighten.cli.options import Output, OutputOption, ProjectOption, TargetOption
from lighten.cli.output import console, plain, print_json, print_json_line
from lighten.cli.render import text
from lighten.client import Client, Uploaded

SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="YAML file of the job.", show_default=False)
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Add a label; may stand more than once."),
]


def submit(
    spec: SpecArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the spec on the server, start nothing.")
    ] = False,
    label: LabelOption = None,
    request_id: Annotated[
        str | None, typer.Option(help="Makes a repeated submit return the same job.")
    ] = None,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Create a job from a YAML spec.

    Model and data that the spec names by a local path are uploaded first.
    """
    message, inputs = read_spec(spec)
    add_labels(message, label or [])
    with options.connect(target, project) as client:
        upload_inputs(inputs, lambda item: _upload(client, item))
        job = client.submit(message, request_id=request_id, validate_only=validate_only)
        if watch and not validate_only:
            _tell(job, output)
            follow.show_end(follow.follow(client, job.name, output), output)
        elif output is Output.JSON:
            print_json(plain(job))
        elif validate_only:
            console().print("The spec is valid.")
        else:
            _tell(job, output)


def add_labels(spec: pb.JobSpec, labels: list[str]) -> None:
    """Add ``KEY=VALUE`` labels to a spec. Raises InvalidArgument."""
    for item in labels:
        key, separator, value = item.partition("=")
        if not key or not separator:
            raise errors.InvalidArgument(f"--label {item}: write KEY=VALUE", reason="INVALID_LABEL")
        spec.labels[key] = value


def _tell(job: pb.Job, output: Output) -> None:
    if output is Output.JSON:
        print_json_line({"job": plain(job)})
    else:
        print(job.name, flush=True)


def _upload(client: Client, item: LocalInput) -> Uploaded:
    with transfers.shown("upload") as on_progress:
        uploaded = client.upload(item.path, on_progress=on_progress)
    files = "" if uploaded.files == 1 else f", {uploaded.files} files"
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"uploaded {item.path} ({text.size(uploaded.bytes)}{files}) for {item.field}", markup=False
    )
    return uploaded
