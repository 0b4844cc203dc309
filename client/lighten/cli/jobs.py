"""Commands on jobs: get, list, watch, wait, cancel, delete."""

from itertools import islice
from typing import Annotated

import typer

from lighten import v1 as pb
from lighten._requests import result_of
from lighten.cli import follow, options
from lighten.cli.options import JobArgument, Output, OutputOption, ProjectOption, TargetOption
from lighten.cli.output import console, plain, print_json, print_json_line
from lighten.cli.render.jobs import change_line, jobs_table

FilterOption = Annotated[
    str,
    typer.Option("--filter", help='For example: state = RUNNING AND labels.team = "vision"'),
]


def get(
    job: JobArgument,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a job, and its result once it has one."""
    with options.connect(target, project) as client:
        found = client.get(job)
    if output is Output.JSON:
        print_json(plain(found))
    else:
        follow.show_job(found)


def list_jobs(
    filter: FilterOption = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List jobs, newest first."""
    with options.connect(target, project) as client:
        found = [*islice(client.list(filter, page_size=min(limit, 1000)), limit)]
    if output is Output.JSON:
        print_json([plain(job) for job in found])
    elif found:
        console().print(jobs_table(found))
    else:
        console().print("No jobs.")


def watch(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]", help="Name or id of a job. Without it: all jobs, for ever."
        ),
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Only events above this sequence.")] = 0,
    filter: FilterOption = "",
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Follow a job live until it ends, then show its result; or follow all jobs.

    Ctrl-C ends the watch; the job goes on.
    """
    with options.connect(target, project) as client:
        if job is not None:
            ended = follow.follow(client, job, output, after_sequence=after)
            follow.show_end(ended, output)
            return
        for change in client.watch_jobs(filter):
            if output is Output.JSON:
                print_json_line(plain(change))
            elif line := change_line(change):
                print(line, flush=True)


def wait(
    job: JobArgument,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds; without it there is no limit.")
    ] = None,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Wait in silence until a job has ended, then show it. Exit code 1 unless it succeeded."""
    with options.connect(target, project) as client:
        ended = client.wait(job, timeout)
    if output is Output.JSON:
        print_json(plain(ended))
        result_of(ended)
    else:
        follow.show_end(ended, output)


def cancel(
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="For the job's history.")] = "",
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Ask a job to stop."""
    with options.connect(target, project) as client:
        found = client.cancel(job, reason)
    if output is Output.JSON:
        print_json(plain(found))
    elif found.state == pb.JOB_STATE_CANCELLED:
        console().print(f"{found.name} is cancelled.")
    else:
        console().print(f"{found.name} is stopping.")


def delete(
    job: JobArgument,
    keep_artifacts: Annotated[
        bool, typer.Option("--keep-artifacts", help="Leave the files in object storage.")
    ] = False,
    target: TargetOption = None,
    project: ProjectOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete a finished job, its events and its artifacts."""
    with options.connect(target, project) as client:
        client.delete(job, keep_artifacts=keep_artifacts)
    if output is Output.JSON:
        print_json({"deleted": job, "artifacts_kept": keep_artifacts})
    else:
        console().print(f"{job} is deleted.")
