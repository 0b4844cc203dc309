"""Guided quantization: looks for the plan that reaches a goal."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.worker.context import StepContext
from lighten_service.worker.guide.decisions import decide
from lighten_service.worker.guide.plans import Candidate
from lighten_service.worker.guide.report import stop_sentence
from lighten_service.worker.guide.search import Budget, Known, Search, Stop
from lighten_service.worker.guide.target import Target
from lighten_service.worker.guide.tree import StepRun, Tree
from lighten_service.worker.judge import Judge
from lighten_service.worker.model import WorkingModel

__all__ = ["Guided", "Known", "guide"]


@dataclass(frozen=True, slots=True)
class Guided:
    """The best model, the steps that made it, and what else was tried."""

    model: WorkingModel
    runs: tuple[StepRun, ...]
    report: pb.GoalReport


def guide(
    context: StepContext,
    model: WorkingModel,
    goal: pb.Goal,
    *,
    metric: pb.Metric.ValueType,
    fp32: Sequence[pb.MetricValue],
    naive: Known | None,
) -> Guided:
    """Look for the best model within a goal's budgets.

    Args:
        context: of the stage; its quantization is what candidates start from.
        model: the float model; belongs to the search from here on.
        goal: resolved.
        metric: what the goal is about, never unspecified.
        fp32: figures of the FP32 model.
        naive: figures of the naive model on the evaluation samples, if it was measured.

    Raises:
        FailedPrecondition: MISSING_CALIBRATION_DATA, GOAL_NEEDS_REFERENCE, METRIC_NOT_MEASURED.
        LightenError: the naive model cannot be made.
        Cancelled: the job shall stop.
    """
    tree = Tree(model)
    try:
        judge = _judge(context)
        target = Target.of(goal, metric, fp32)
        began = monotonic()
        budget = Budget(began, began + _seconds(goal), goal.max_trials)
        search = Search(context, tree, judge, target, budget, goal.max_bops_ratio)
        stopped = _run(search, Candidate.naive(context.quantization), naive)
        report = _report(search, stopped)
        branch = search.take()
    except BaseException:
        tree.close()
        raise
    return Guided(branch.model, branch.runs, report)


def _judge(context: StepContext) -> Judge:
    if context.judge is None:
        raise FailedPrecondition(
            "MISSING_CALIBRATION_DATA",
            "a goal needs samples to calibrate and to compare with FP32; set calibration",
            field="calibration",
        )
    return context.judge


def _run(search: Search, naive: Candidate, known: Known | None) -> pb.StopReason.ValueType:
    try:
        search.begin(naive, known)
        decide(search)
    except Stop as stop:
        return stop.reason
    return pb.STOP_REASON_EXHAUSTED


def _report(search: Search, stopped: pb.StopReason.ValueType) -> pb.GoalReport:
    best = search.best
    report = pb.GoalReport(
        met=best.report.met,
        winner=best.candidate.name,
        plan=best.candidate.plan,
        trials=search.trials,
        stop_reason=stopped,
    )
    last = stop_sentence(report, search.target.metric, search.target.threshold)
    report.explanation.extend([*search.explanation, last])
    return report


def _seconds(goal: pb.Goal) -> float:
    return goal.time_budget.seconds + goal.time_budget.nanos / 1e9
