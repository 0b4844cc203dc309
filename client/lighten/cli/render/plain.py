"""A job as lines of text, for pipes and logs."""

from collections.abc import Callable

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.cli.render.goal import trial_line
from lighten.cli.render.live import amount_done
from lighten.cli.render.progress import JobProgress

# A stage tells of its progress each time that another such share of it is done.
_SHARE = 0.25


class PlainView:
    """Writes a line for what matters; progress only now and then."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._progress = JobProgress()
        self._told: dict[str, float] = {}

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def plan(self, job: pb.Job) -> None:
        self._progress.plan(job)

    def event(self, event: pb.JobEvent) -> None:
        self._progress.apply(event)
        line = self._line(event)
        if line:
            time = event.time.ToDatetime().strftime("%H:%M:%S")
            self._write(f"{time} {line}")

    def reconnecting(self, message: str) -> None:
        self._write(message)

    def _line(self, event: pb.JobEvent) -> str:
        stage = text.stage_name(event.stage)
        match event.WhichOneof("payload"):
            case "state_changed":
                change = event.state_changed
                name = text.state_name(change.to)
                return _joined(name, "" if change.reason.upper() == name else change.reason)
            case "stage_started":
                # A later attempt tells of its progress again.
                self._told.pop(stage, None)
                return _joined(stage, event.stage_started.title or "started")
            case "stage_finished":
                done = f"done in {text.seconds(event.stage_finished.seconds)}"
                return _joined(stage, done, event.stage_finished.summary)
            case "progress":
                return self._progress_line(_joined(stage, event.trial), event)
            case "metric" if event.metric.value.metric in text.KEY_METRICS:
                value = event.metric.value
                column = text.column_name(event.metric.column)
                name = f"{column} {text.metric_name(value.metric)}"
                return f"{name}: {text.metric_value(value)} (n = {value.samples})"
            case "trial_finished":
                return _joined("trial", trial_line(event.trial_finished))
            case "warning":
                return _joined("warning", event.warning.message)
            case "log" if event.log.level >= pb.LOG_LEVEL_WARNING:
                return _joined("log", event.log.message)
        return ""

    def _progress_line(self, name: str, event: pb.JobEvent) -> str:
        progress = event.progress
        share = progress.done / progress.total if progress.total else 0.0
        if share < self._told.get(name, 0.0) + _SHARE:
            return ""
        self._told[name] = share
        eta = ""
        if progress.HasField("eta_seconds"):
            eta = f"{text.seconds(progress.eta_seconds)} left"
        stage = self._progress.stages[text.stage_name(event.stage)]
        return _joined(name, amount_done(stage), eta)


def _joined(*parts: str) -> str:
    return ": ".join(part for part in parts if part)
