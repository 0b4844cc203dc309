"""A job on a terminal: stages with bars, metrics as they come, warnings."""

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.cli.render.goal import trials_table
from lighten.cli.render.progress import JobProgress, StageProgress, StageStatus

_MARKS = {
    StageStatus.WAITING: ("·", "dim"),
    StageStatus.DONE: ("✔", "green"),
    StageStatus.FAILED: ("✘", "red"),
}
_BAR_WIDTH = 16
_SHOWN_WARNINGS = 3
_SHOWN_TRIALS = 8


class LiveView:
    """Redraws the job in place with every event; the last picture stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = JobProgress()
        self._connection = ""
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def open(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._live.stop()

    def plan(self, job: pb.Job) -> None:
        self._progress.plan(job)

    def event(self, event: pb.JobEvent) -> None:
        self._connection = ""
        self._progress.apply(event)

    def reconnecting(self, message: str) -> None:
        self._connection = message

    def _render(self) -> RenderableType:
        return render_progress(self._progress, self._spinner, self._connection)


def render_progress(
    progress: JobProgress, spinner: RenderableType = "", connection: str = ""
) -> RenderableType:
    """Return the picture of a job."""
    parts: list[RenderableType] = [_headline(progress), _stages(progress, spinner)]
    metrics = _metrics(progress)
    if metrics is not None:
        parts.append(metrics)
    if progress.trials:
        parts.append(_trials(progress))
    shown = progress.warnings[-_SHOWN_WARNINGS:]
    parts.extend(Text.assemble(("warning: ", "yellow"), warning) for warning in shown)
    hidden = len(progress.warnings) - _SHOWN_WARNINGS
    if hidden > 0:
        parts.append(Text(f"and {hidden} warnings before", style="dim"))
    if connection:
        parts.append(Text(connection, style="yellow"))
    return Group(*parts)


def _headline(progress: JobProgress) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    for _ in range(4):
        line.add_column(no_wrap=True)
    state = Text(text.state_name(progress.state), style=text.state_style(progress.state))
    facts = f"{100 * progress.fraction:3.0f} %"
    if progress.eta_seconds is not None:
        facts += f"  {text.seconds(progress.eta_seconds)} left"
    if progress.attempt > 1:
        facts += f"  attempt {progress.attempt}"
    bar = ProgressBar(total=1.0, completed=progress.fraction, width=_BAR_WIDTH)
    line.add_row(Text(progress.name.rpartition("/")[2], style="bold"), state, bar, Text(facts))
    waits = progress.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_CANCELLING)
    return Group(line, Text(f"  {progress.reason}", style="dim")) if waits else line


def _stages(progress: JobProgress, spinner: RenderableType) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()  # the one that gives way on a narrow terminal
    for stage in progress.stages.values():
        running = stage.status is StageStatus.RUNNING
        mark = spinner if running else Text(*_MARKS[stage.status])
        style = "dim" if stage.status is StageStatus.WAITING else ""
        table.add_row(mark, Text(stage.name, style=style), _bar(stage), _detail(stage))
    return table


def _bar(stage: StageProgress) -> RenderableType:
    match stage.status:
        case StageStatus.RUNNING if stage.total:
            return ProgressBar(total=stage.total, completed=stage.done, width=_BAR_WIDTH)
        case StageStatus.RUNNING:
            return ProgressBar(total=None, pulse=True, width=_BAR_WIDTH)
        case StageStatus.DONE:
            return Text(text.seconds(stage.seconds), style="dim")
    return Text()


def _detail(stage: StageProgress) -> Text:
    match stage.status:
        case StageStatus.DONE:
            words, style = stage.summary, "dim"
        case StageStatus.RUNNING:
            words = ": ".join(part for part in (stage.trial, amount_done(stage)) if part)
            words, style = words or stage.title, ""
        case _:
            words, style = "", ""
    return Text(words, style=style, no_wrap=True, overflow="ellipsis")


def amount_done(stage: StageProgress) -> str:
    """Return how far a stage is, in its unit; empty where nothing is counted."""
    if not stage.unit:
        return ""
    if stage.unit == "bytes":
        done, total, unit = text.size(stage.done), text.size(stage.total), ""
    else:
        done, total, unit = str(stage.done), str(stage.total), f" {stage.unit}"
    return f"{done} of {total}{unit}" if stage.total else f"{done}{unit}"


def _trials(progress: JobProgress) -> RenderableType:
    """Return the newest trials, and the best whenever it was."""
    best = [trial for trial in progress.trials if trial.name == progress.best_trial]
    newest = progress.trials[-_SHOWN_TRIALS:]
    table = trials_table(
        [*(item for item in best if item not in newest), *newest], progress.best_trial
    )
    hidden = len(progress.trials) - table.row_count
    return Group(table, Text(f"and {hidden} trials before", style="dim")) if hidden else table


def _metrics(progress: JobProgress) -> Table | None:
    """Return a table of columns by key metrics, or None before the first value."""
    columns = list(dict.fromkeys(column for column, _ in progress.metrics))
    known = {metric for _, metric in progress.metrics}
    metrics = [metric for metric in text.KEY_METRICS if metric in known]
    if not metrics:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    table.add_column("")
    for metric in metrics:
        table.add_column(text.metric_name(metric), justify="right")
    for column in columns:
        values = [progress.metrics.get((column, metric)) for metric in metrics]
        cells = [text.metric_value(value) if value else "" for value in values]
        table.add_row(text.column_name(column), *cells)
    return table
