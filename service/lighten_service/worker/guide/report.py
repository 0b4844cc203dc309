"""What a search found, in messages and in words."""

from collections.abc import Sequence

from lighten import v1 as pb
from lighten_service.worker.metrics import MAX_SQNR_DB

_NAMES = {
    pb.METRIC_TOP1: "top-1",
    pb.METRIC_TOP5: "top-5",
    pb.METRIC_SQNR: "SQNR",
    pb.METRIC_COSINE: "cosine",
    pb.METRIC_AGREEMENT: "agreement",
    pb.METRIC_KL_DIVERGENCE: "KL divergence",
}
_SHARES = frozenset({pb.METRIC_TOP1, pb.METRIC_TOP5, pb.METRIC_AGREEMENT})


def figure(metric: pb.Metric.ValueType, value: float) -> str:
    """Return a value with its metric and unit: ``SQNR 14.8 dB``."""
    if metric in _SHARES:
        text = f"{100 * value:.1f} %"
    elif metric == pb.METRIC_SQNR:
        text = "exact" if value >= MAX_SQNR_DB else f"{value:.1f} dB"
    else:
        text = f"{value:.4g}"
    return f"{_NAMES[metric]} {text}"


def figures(metric: pb.Metric.ValueType, metrics: Sequence[pb.MetricValue]) -> str:
    """Return the goal's metric, and SQNR beside it."""
    found = {item.metric: item.value for item in metrics}
    shown = [item for item in dict.fromkeys((metric, pb.METRIC_SQNR)) if item in found]
    return ", ".join(figure(item, found[item]) for item in shown)


def stop_sentence(
    report: pb.GoalReport, metric: pb.Metric.ValueType, threshold: float | None
) -> str:
    """Return why the search ended, and what was kept."""
    winner = next(trial for trial in report.trials if trial.name == report.winner)
    wanted = f"; the goal is {figure(metric, threshold)}" if threshold is not None else ""
    ended = {
        pb.STOP_REASON_GOAL_MET: "The goal is met",
        pb.STOP_REASON_TIME_BUDGET: "The time budget is spent",
        pb.STOP_REASON_TRIAL_BUDGET: "The trial budget is spent",
        pb.STOP_REASON_EXHAUSTED: "Nothing is left to try",
    }[report.stop_reason]
    return f"{ended}: {report.winner} is kept with {figures(metric, winner.metrics)}{wanted}."
