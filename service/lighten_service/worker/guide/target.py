"""What a goal asks of the metric, and which of two results is nearer to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition

# What FP32 has by definition; accuracy is measured.
_FP32: Final[Mapping[pb.Metric.ValueType, float]] = {
    pb.METRIC_AGREEMENT: 1.0,
    pb.METRIC_COSINE: 1.0,
    pb.METRIC_KL_DIVERGENCE: 0.0,
}
_LOWER_IS_BETTER: Final = frozenset({pb.METRIC_KL_DIVERGENCE})


@dataclass(frozen=True, slots=True)
class Target:
    """The metric, and the value that it must reach; None for the best that can be had."""

    metric: pb.Metric.ValueType
    threshold: float | None

    @classmethod
    def of(cls, goal: pb.Goal, metric: pb.Metric.ValueType, fp32: Sequence[pb.MetricValue]) -> Self:
        """Return the target of a goal.

        Args:
            metric: that of the job, never unspecified.
            fp32: figures of the FP32 model.

        Raises:
            FailedPrecondition: GOAL_NEEDS_REFERENCE, the goal is a loss against FP32, which has no
                value of this metric.
        """
        kind = goal.WhichOneof("target")
        if kind is None or kind == "value":
            return cls(metric, goal.value if kind else None)
        measured = {item.metric: item.value for item in fp32}
        reference = measured.get(metric, _FP32.get(metric))
        if reference is None:
            raise FailedPrecondition(
                "GOAL_NEEDS_REFERENCE",
                f"{kind} is a loss against FP32, which has no {pb.Metric.Name(metric)}: use value, "
                "or add labels to the evaluation data and set metric to METRIC_TOP1",
                field=f"plan.goal.{kind}",
            )
        loss = goal.max_drop if kind == "max_drop" else goal.max_relative_drop * abs(reference)
        return cls(metric, reference + loss if metric in _LOWER_IS_BETTER else reference - loss)

    def found(self, metrics: Sequence[pb.MetricValue]) -> pb.MetricValue:
        """Return the target's metric.

        Raises:
            FailedPrecondition: METRIC_NOT_MEASURED, the outputs or the data do not have it.
        """
        for item in metrics:
            if item.metric == self.metric:
                return item
        raise FailedPrecondition(
            "METRIC_NOT_MEASURED",
            f"{pb.Metric.Name(self.metric)} cannot be measured on this model and these data: it "
            "needs class scores in the first output, and labels for top-1 and top-5; use "
            "METRIC_SQNR or METRIC_COSINE",
            field="metric",
        )

    def met(self, metrics: Sequence[pb.MetricValue]) -> bool:
        """Whether the goal is reached; never without a threshold."""
        if self.threshold is None:
            return False
        value = self.found(metrics).value
        if self.metric in _LOWER_IS_BETTER:
            return value <= self.threshold
        return value >= self.threshold

    def gain(self, metrics: Sequence[pb.MetricValue], other: Sequence[pb.MetricValue]) -> float:
        """Return by how much the first figures are better; 0 where chance alone could do that.

        Shares of samples differ by chance by their standard errors; other metrics are compared as
        they are.
        """
        mine, theirs = self.found(metrics), self.found(other)
        gain = mine.value - theirs.value
        if self.metric in _LOWER_IS_BETTER:
            gain = -gain
        noise = math.hypot(mine.standard_error, theirs.standard_error)
        return gain if abs(gain) > noise else 0.0
