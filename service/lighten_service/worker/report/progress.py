"""What each step changed, and the trials of a guided job."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.spec import dump_spec
from lighten_service.jobs.support import technique_of
from lighten_service.worker.report import charts, words
from lighten_service.worker.report.charts import Bar, Plot

# A plot ends here; a float model is beyond it.
_TOP_DB = 60.0
# Counts and figures of a step that are shown; the result has all.
_FINDINGS = 8


@dataclass(frozen=True, slots=True)
class StepRow:
    """``metrics``: (name, value) of what was measured after the step."""

    id: str
    title: str
    seconds: str
    metrics: Sequence[tuple[str, str]]
    summary: str
    findings: Sequence[tuple[str, str]]
    skipped: bool


@dataclass(frozen=True, slots=True)
class Steps:
    rows: Sequence[StepRow]
    device: str
    chart: Plot | None


@dataclass(frozen=True, slots=True)
class TrialRow:
    """``state``: kept, goal met, not measured (``failure`` says why), or nothing of these."""

    name: str
    description: str
    metrics: Sequence[str]
    bops: str
    weights: str
    seconds: str
    state: str
    failure: str


@dataclass(frozen=True, slots=True)
class Guide:
    met: bool
    has_target: bool
    winner: str
    stopped: str
    explanation: Sequence[str]
    metric_names: Sequence[str]
    trials: Sequence[TrialRow]
    plan: str
    chart_title: str
    chart: Sequence[Bar] = field(default=())


_STOPPED = {
    pb.STOP_REASON_TIME_BUDGET: "The trials ended with their time",
    pb.STOP_REASON_TRIAL_BUDGET: "The trials ended with their number",
    pb.STOP_REASON_EXHAUSTED: "Nothing was left to try",
}


def steps(result: pb.JobResult) -> Steps | None:
    if not result.steps:
        return None
    return Steps(
        rows=[_step(report) for report in result.steps],
        device=result.steps[0].device,
        chart=_step_chart(result),
    )


def _step(report: pb.StepReport) -> StepRow:
    technique = technique_of(report.step)
    return StepRow(
        id=report.step.id,
        title=technique.info.summary if technique else "",
        seconds=text.seconds(report.seconds),
        metrics=[(text.metric_name(item.metric), words.metric(item)) for item in report.metrics],
        summary=report.summary,
        findings=_findings(report),
        skipped=report.skipped,
    )


def _findings(report: pb.StepReport) -> list[tuple[str, str]]:
    # What is said of single layers, "name:layer", has a section of its own.
    names = sorted(name for name in report.findings if ":" not in name)
    found = [(name, words.count(report.findings[name])) for name in names[:_FINDINGS]]
    return found + [("and more", str(len(names) - _FINDINGS))] * (len(names) > _FINDINGS)


def _step_chart(result: pb.JobResult) -> Plot | None:
    measured = [
        (report.step.id, item.value)
        for report in result.steps
        if (item := words.find(report.metrics, pb.METRIC_SQNR)) is not None
    ]
    if len(measured) < 2:
        return None
    naive = words.find(result.naive.metrics, pb.METRIC_SQNR)
    values = [value for _, value in measured] + ([naive.value] if naive is not None else [])
    scale = charts.Scale(min(0.0, min(values)), min(_TOP_DB, max(values)))
    total = len(measured)
    points = [(charts.middle(at, total), scale.y(value)) for at, (_, value) in enumerate(measured)]
    marks = [charts.line(points, "main")]
    legend = [("main", "after each step")]
    if naive is not None:
        marks.insert(0, charts.rule(scale.y(naive.value), "naive", "naive"))
        legend.append(("naive", f"naive, {words.decibels(naive.value)}"))
    for (name, value), (x, y) in zip(measured, points, strict=True):
        marks.append(charts.dot(x, y, "main", f"{name}: {words.decibels(value)}"))
    return Plot(
        title="SQNR after each step",
        description="; ".join(f"{name} {words.decibels(value)}" for name, value in measured),
        unit="dB",
        y_ticks=scale.marks(),
        x_ticks=[
            charts.Tick(charts.percent_x(x), name)
            for (name, _), (x, _) in zip(measured, points, strict=True)
        ],
        marks=marks,
        labels=[
            (charts.percent_x(x), charts.percent_y(y), words.decibels(value))
            for (_, value), (x, y) in zip(measured, points, strict=True)
        ],
        legend=legend,
    )


def guide(spec: pb.JobSpec, result: pb.JobResult) -> Guide | None:
    """Return the trials of a guided job; None for one with steps of its own."""
    goal = result.goal
    if not goal.trials:
        return None
    found = {item.metric for trial in goal.trials for item in trial.metrics}
    metrics = sorted(found, key=lambda metric: (metric != result.metric, metric))
    judged = result.metric if result.metric in found else pb.METRIC_SQNR
    return Guide(
        met=goal.met,
        has_target=spec.plan.goal.WhichOneof("target") is not None,
        winner=goal.winner,
        stopped=_STOPPED.get(goal.stop_reason, ""),
        explanation=list(goal.explanation),
        metric_names=[text.metric_name(metric) for metric in metrics],
        trials=[_trial(trial, goal, metrics) for trial in goal.trials],
        plan=dump_spec(pb.JobSpec(plan=goal.plan)) if goal.HasField("plan") else "",
        chart_title=f"{text.metric_name(judged)} of each trial",
        chart=_trial_bars(goal, judged),
    )


def _trial(
    trial: pb.TrialReport, goal: pb.GoalReport, metrics: Sequence[pb.Metric.ValueType]
) -> TrialRow:
    values = [words.find(trial.metrics, metric) for metric in metrics]
    state = "kept" if trial.name == goal.winner else "goal met" if trial.met else ""
    return TrialRow(
        name=trial.name,
        description=trial.description,
        metrics=[words.metric(item) if item is not None else "" for item in values],
        bops=text.amount(trial.bops) if trial.bops else "",
        weights=text.size(trial.weight_bytes) if trial.weight_bytes else "",
        seconds=text.seconds(trial.seconds),
        state="not measured" if trial.failure else state,
        failure=trial.failure,
    )


def _trial_bars(goal: pb.GoalReport, metric: pb.Metric.ValueType) -> list[Bar]:
    found = [(trial, words.find(trial.metrics, metric)) for trial in goal.trials]
    measured = [(trial, item) for trial, item in found if item is not None]
    longest = max((abs(item.value) for _, item in measured), default=0.0)
    if len(measured) < 2 or longest <= 0:
        return []
    return [
        Bar(
            label=trial.name,
            share=max(item.value, 0.0) / longest,
            value=words.metric(item),
            style="main" if trial.name == goal.winner else "naive",
            note="kept" if trial.name == goal.winner else "",
        )
        for trial, item in measured
    ]
