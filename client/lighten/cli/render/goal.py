"""A guided job: its goal, its trials, and what came of them."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lighten import v1 as pb
from lighten.cli.render import text

_STOPPED: dict[pb.StopReason.ValueType, str] = {
    pb.STOP_REASON_GOAL_MET: "the goal was met",
    pb.STOP_REASON_TIME_BUDGET: "the time budget was spent",
    pb.STOP_REASON_TRIAL_BUDGET: "the trial budget was spent",
    pb.STOP_REASON_EXHAUSTED: "nothing was left to try",
}
# Metrics in which a loss is said in points of a hundred.
_POINTS = frozenset({pb.METRIC_TOP1, pb.METRIC_TOP5, pb.METRIC_AGREEMENT})


def goal_text(goal: pb.Goal, metric: pb.Metric.ValueType) -> str:
    """Return what a goal asks for: ``top-1 at most 1 points below FP32``."""
    name = text.metric_name(metric)
    match goal.WhichOneof("target"):
        case "max_drop" if metric in _POINTS:
            return f"{name} at most {100 * goal.max_drop:g} points below FP32"
        case "max_drop":
            return f"{name} at most {goal.max_drop:g} from FP32"
        case "max_relative_drop":
            return f"{name} at most {100 * goal.max_relative_drop:g} % below FP32's"
        case "value":
            value = text.metric_value(pb.MetricValue(metric=metric, value=goal.value))
            bound = "at most" if metric == pb.METRIC_KL_DIVERGENCE else "at least"
            return f"{name} {bound} {value}"
    return f"the best {name} within the budgets"


def goal_view(job: pb.Job) -> RenderableType:
    """Return whether the goal was met, every trial, and why the winner was kept."""
    goal, report = job.resolved_spec.plan.goal, job.result.goal
    parts: list[RenderableType] = [
        Text.assemble(("Goal: ", "bold"), goal_text(goal, job.result.metric), *_outcome(job)),
        trials_table(report.trials, report.winner),
    ]
    parts.extend(Text(f"  {sentence}") for sentence in report.explanation)
    return Group(*parts)


def trials_table(trials: Sequence[pb.TrialReport], best: str) -> Table:
    """Return a line for each trial; ``best`` is marked."""
    known = {value.metric for trial in trials for value in trial.metrics}
    metrics = [metric for metric in text.KEY_METRICS if metric in known]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("  trial")
    for metric in metrics:
        table.add_column(text.metric_name(metric), justify="right", no_wrap=True)
    table.add_column("bit operations", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    for trial in trials:
        values = {value.metric: text.metric_value(value) for value in trial.metrics}
        table.add_row(
            _name(trial, best),
            *(values.get(metric, "") for metric in metrics),
            text.amount(trial.bops) if trial.bops else "",
            text.seconds(trial.seconds),
        )
    return table


def trial_line(finished: pb.TrialFinished) -> str:
    """Return a trial in a line: ``cle: top-1 71.0 %, SQNR 14.2 dB: best so far``."""
    trial = finished.trial
    if trial.failure:
        return f"{trial.name}: failed: {trial.failure}"
    values = ", ".join(
        f"{text.metric_name(value.metric)} {text.metric_value(value)}"
        for value in trial.metrics
        if value.metric in text.KEY_METRICS
    )
    marks = ["goal met"] if trial.met else []
    marks += ["best so far"] if finished.best else []
    return ": ".join(part for part in (trial.name, values, ", ".join(marks)) if part)


def stop_text(report: pb.GoalReport) -> str:
    """Return why no more was tried; empty where that is not said."""
    return _STOPPED.get(report.stop_reason, "")


def _outcome(job: pb.Job) -> list[tuple[str, str]]:
    report = job.result.goal
    if job.resolved_spec.plan.goal.WhichOneof("target") is None:
        outcome = ("", "")
    else:
        outcome = (": met", "bold green") if report.met else (": missed", "bold yellow")
    stopped = stop_text(report)
    count = f"{len(report.trials)} trials"
    return [outcome, (f"  {count}; {stopped}" if stopped else f"  {count}", "dim")]


def _name(trial: pb.TrialReport, best: str) -> Text:
    mark = ("★ ", "green") if trial.name == best else ("✘ ", "red") if trial.failure else "  "
    failure = f"  {trial.failure}" if trial.failure else ""
    return Text.assemble(mark, trial.name, (failure, "dim"))
