"""The command that needs no server: one job, start to end, on this machine."""

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lighten import errors
from lighten import v1 as pb
from lighten.cli import follow, transfers
from lighten.cli.inputs import file_roots, read_in_place, read_spec
from lighten.cli.options import Output, OutputOption, ToOption
from lighten.cli.server import require_server
from lighten.cli.submit import LabelOption, SpecArgument, add_labels
from lighten.client import Client

if TYPE_CHECKING:
    from lighten.embedded import EmbeddedServer

# The embedded server does not come back when it is gone.
_PATIENCE_SECONDS = 10.0
_CANCEL_SECONDS = 20.0


def run(
    spec: SpecArgument,
    to: ToOption = "lighten-output",
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Keep database and objects here. Default: a folder that is removed."),
    ] = None,
    label: LabelOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run one job without a server: start one for it, follow it, leave the artifacts in a folder.

    Files that the spec names by a local path are read where they are. Ctrl-C cancels the job.
    """
    message, inputs = read_spec(spec)
    add_labels(message, label or [])
    require_server(worker=True)
    read_in_place(inputs)
    with _signals_interrupt(), _folder(data_dir) as folder:
        _run(message, folder, Path(to), output)


def _run(spec: pb.JobSpec, folder: Path, to: Path, output: Output) -> None:
    from lighten.embedded import EmbeddedServer

    with (
        EmbeddedServer(folder, file_roots(spec)) as server,
        Client(server.target, patience=_PATIENCE_SECONDS) as client,
    ):
        name = client.submit(spec).name
        job = _follow(client, name, output)
        files = None
        if job.state == pb.JOB_STATE_SUCCEEDED:
            files = _download(client, job, to)
        elif job.error.reference:
            _keep_log(server, to)
        follow.show_end(job, output, files)


def _follow(client: Client, name: str, output: Output) -> pb.Job:
    try:
        return follow.follow(client, name, output)
    except KeyboardInterrupt:
        # The terminal may be gone.
        with contextlib.suppress(OSError):
            Console(stderr=True).print("Cancelling the job; Ctrl-C again stops it at once.")
        # The server may be gone, or the worker too slow: it is killed with the server then.
        with contextlib.suppress(errors.LightenError):
            client.cancel(name, "interrupted")
            client.wait(name, _CANCEL_SECONDS)
        raise


def _download(client: Client, job: pb.Job, to: Path) -> dict[str, Path]:
    with transfers.shown("write") as on_progress:
        paths = client.download(job.name, to, on_progress=on_progress)
    return dict(zip((item.name for item in job.result.artifacts), paths, strict=True))


def _keep_log(server: "EmbeddedServer", to: Path) -> None:
    """Save the logs that an internal error refers to from the folder that is removed."""
    to.mkdir(parents=True, exist_ok=True)
    kept = to / "lighten.log"
    kept.write_text(server.logs(), encoding="utf-8")
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"The log is {kept}.", markup=False)


@contextlib.contextmanager
def _folder(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield data_dir.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="lighten-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C, so that nothing that was started stays behind.

    A signal that is ignored stays so: that is what nohup is for.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # The kernel and the shell both send it: the second is not an impatient Ctrl-C.
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
