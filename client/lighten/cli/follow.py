"""Follows a job to its end, live, and shows how it ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lighten import errors
from lighten import v1 as pb
from lighten._requests import TERMINAL_STATES, result_of
from lighten.cli.options import Output
from lighten.cli.output import console, plain, print_json_line
from lighten.cli.render.jobs import job_details
from lighten.cli.render.live import LiveView
from lighten.cli.render.plain import PlainView
from lighten.cli.render.report import render_result
from lighten.client import Client


class View(Protocol):
    """Shows a job while it goes on."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def plan(self, job: pb.Job) -> None: ...

    def event(self, event: pb.JobEvent) -> None: ...

    def reconnecting(self, message: str) -> None: ...


class JsonView:
    """Prints every event as a line of JSON."""

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def plan(self, job: pb.Job) -> None:
        pass

    def event(self, event: pb.JobEvent) -> None:
        print_json_line({"event": plain(event)})

    def reconnecting(self, message: str) -> None:
        pass


def follow(client: Client, name: str, output: Output, *, after_sequence: int = 0) -> pb.Job:
    """Show a job until it has ended, and return it in the FULL view."""
    # Tells at once whether the job and the server are there.
    job = client.get(name)
    with _opened(_view(output)) as view:
        view.plan(job)

        def on_reconnect(error: errors.LightenError, delay: float) -> None:
            view.reconnecting(f"connection lost, trying again in {delay:.1f} s: {error.message}")

        watch = client.watch(name, after_sequence, on_reconnect=on_reconnect)
        try:
            for event in watch:
                view.event(event)
        finally:
            watch.close()
    return client.get(name)


def show_end(job: pb.Job, output: Output, files: Mapping[str, Path] | None = None) -> None:
    """Show how a finished job ended.

    Raises:
        JobFailed, JobCancelled: it has no result.
    """
    if output is Output.JSON:
        document: dict[str, Any] = {"job": plain(job)}
        if files is not None:
            document["files"] = {name: str(path) for name, path in files.items()}
        print_json_line(document)
        result_of(job)
    else:
        result_of(job)
        out = console()
        out.print()
        out.print(render_result(job, files))


def show_job(job: pb.Job) -> None:
    """Show a job as it is, and its result where there is one."""
    out = console()
    out.print(job_details(job))
    if job.state in TERMINAL_STATES and job.HasField("result"):
        out.print()
        out.print(render_result(job))
    if job.HasField("error"):
        out.print(f"[red]{job.error.reason}[/]: ", end="")
        out.print(job.error.message, markup=False)


def _view(output: Output) -> View:
    if output is Output.JSON:
        return JsonView()
    out = console()
    if out.is_terminal:
        return LiveView(out)
    return PlainView(lambda line: print(line, flush=True))


@contextmanager
def _opened(view: View) -> Iterator[View]:
    view.open()
    try:
        yield view
    finally:
        view.close()
