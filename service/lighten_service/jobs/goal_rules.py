"""Rules of a goal: what it may ask of which metric, with which budgets."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation, invalid
from lighten_service.jobs.resolve import default_metric
from lighten_service.jobs.support import BLOCKWISE, LABEL_METRICS
from lighten_service.jobs.technique_rules import check_opset, has_blocks
from lighten_service.jobs.widths import INTEGER_BITS, next_wider

_GOAL = "plan.goal"
# Of the time of the job: what comes before and after the search needs some, too.
_LARGEST_SHARE: Final = 0.8
# Values that a metric can have.
_RANGES: Final[Mapping[pb.Metric.ValueType, tuple[float, float]]] = {
    pb.METRIC_TOP1: (0.0, 1.0),
    pb.METRIC_TOP5: (0.0, 1.0),
    pb.METRIC_AGREEMENT: (0.0, 1.0),
    pb.METRIC_COSINE: (-1.0, 1.0),
    pb.METRIC_SQNR: (-math.inf, math.inf),
    pb.METRIC_KL_DIVERGENCE: (0.0, math.inf),
}


def check_goal(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with ``spec.plan.goal``."""
    goal = spec.plan.goal
    if not spec.HasField("calibration"):
        yield Violation("calibration", "is required: a goal is reached by calibration")
    yield from _check_target(spec)
    if goal.HasField("time_budget") and _seconds(goal.time_budget) < 1:
        yield Violation(f"{_GOAL}.time_budget", "must be at least 1 second")
    if goal.max_bops_ratio > 1:
        yield from _check_widening(spec)


def check_budget(resolved: pb.JobSpec) -> None:
    """Check a goal's time against that of the job, which may be the server's default.

    Raises:
        InvalidArgument: reason INVALID_SPEC.
    """
    budget = resolved.plan.goal.time_budget
    limit = _seconds(resolved.resources.run_timeout)
    most = limit * _LARGEST_SHARE
    if resolved.plan.HasField("goal") and _seconds(budget) > most:
        description = (
            f"must be at most {most:g} s, and is {_seconds(budget):g} s: resources.run_timeout, "
            f"{limit:g} s, holds evaluation and export too"
        )
        raise invalid("INVALID_SPEC", [Violation(f"spec.{_GOAL}.time_budget", description)])


def _check_widening(spec: pb.JobSpec) -> Iterator[Violation]:
    path = f"{_GOAL}.max_bops_ratio"
    quantization = spec.plan.quantization
    weights = quantization.weights or pb.DATA_TYPE_INT8
    activations = quantization.activations or pb.DATA_TYPE_INT8
    wider = {item for item in map(next_wider, (weights, activations)) if item is not None}
    granularity = quantization.weight_granularity
    if not wider:
        yield Violation(path, "must be 1: no integer type is wider than plan.quantization's")
    elif not {weights, activations} <= INTEGER_BITS.keys():
        yield Violation(path, "must be 1: plan.quantization has types that are no integers")
    elif granularity in BLOCKWISE and not has_blocks(next_wider(weights) or weights, granularity):
        name = pb.Granularity.Name(granularity)
        yield Violation(path, f"must be 1: {name} does not work with wider weights")
    yield from check_opset(spec.outputs, wider)


def _check_target(spec: pb.JobSpec) -> Iterator[Violation]:
    target = spec.plan.goal.WhichOneof("target")
    if target is None:
        return
    path = f"{_GOAL}.{target}"
    metric = spec.metric or default_metric(spec)
    if metric == pb.METRIC_UNSPECIFIED:
        if target == "value":
            yield Violation("metric", f"is required: {path} is a value of it")
    elif target == "value":
        low, high = _RANGES[metric]
        value = spec.plan.goal.value
        if not low <= value <= high:
            name = pb.Metric.Name(metric)
            bounds = f"between {low:g} and {high:g}" if high < math.inf else f"at least {low:g}"
            yield Violation(path, f"must be {bounds} for {name}, and is {value:g}")
    elif metric == pb.METRIC_SQNR:
        yield Violation(
            path,
            "is a loss against FP32, which has no SQNR: use value, or set metric to one of "
            f"{', '.join(pb.Metric.Name(item) for item in sorted(LABEL_METRICS))}, "
            "METRIC_AGREEMENT or METRIC_COSINE",
        )
    elif metric == pb.METRIC_KL_DIVERGENCE and target == "max_relative_drop":
        yield Violation(path, "means nothing for METRIC_KL_DIVERGENCE, which is 0 for FP32")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
