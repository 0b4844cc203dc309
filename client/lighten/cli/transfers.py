"""A bar for files on their way; on stderr, so that stdout stays what it is."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lighten._files import FileProgress


@contextmanager
def shown(verb: str) -> Iterator[FileProgress]:
    """Give a callback that draws one bar for the file under way, on a terminal alone."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    disable = not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(verb, total=None)

        def on_progress(name: str, done: int, total: int) -> None:
            progress.update(task, description=f"{verb} {name}", completed=done, total=total)

        yield on_progress
