"""How long the rounding of a model will take, measured before it begins."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from time import monotonic

import torch

from lighten_service.worker.algorithms import unfold
from lighten_service.worker.algorithms.reconstruction import Gram, Rows
from lighten_service.worker.algorithms.rounding import (
    BATCH_ROWS,
    Schedule,
    SoftRounding,
    learn,
    uses_gram,
)
from lighten_service.worker.quantized import Check, Layer, QuantizedModel

_WARM_UP_STEPS, _TIMED_STEPS = 1, 3


@dataclass
class CostEstimate:
    """Seconds of each layer, by name; better with each layer that is done."""

    layers: dict[str, float]
    _expected: float = 0.0
    _spent: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.layers.values())

    def share(self, name: str) -> tuple[float, float]:
        """Return where the layer begins and ends, as shares of the whole."""
        names = list(self.layers)
        before = sum(self.layers[other] for other in names[: names.index(name)])
        return before / self.total, min((before + self.layers[name]) / self.total, 1.0)

    def finish(self, name: str, seconds: float) -> None:
        """Take note of what a layer really took."""
        self._expected += self.layers[name]
        self._spent += seconds

    @property
    def remaining(self) -> float:
        """Seconds left, if the other layers miss their estimates as those that are done did."""
        pace = self._spent / self._expected if self._expected else 1.0
        return max(self.total - self._expected, 0.0) * pace


def estimate(
    quantized: QuantizedModel, names: Collection[str], schedule: Schedule, check: Check
) -> CostEstimate:
    """Time a few steps of each shape of layer, on made-up inputs.

    What a walk and the measurements of each layer add is left out: a handful of passes over the
    samples.
    """
    by_shape: dict[tuple[object, ...], float] = {}
    seconds: dict[str, float] = {}
    for layer in quantized.layers():
        if layer.name not in names:
            continue
        check()
        weight = unfold.weight_matrix(layer.kernel, quantized.weight(layer))
        shape = (weight.shape, layer.activation is None)
        if shape not in by_shape:
            by_shape[shape] = _seconds_per_step(layer, weight, schedule)
        seconds[layer.name] = by_shape[shape] * schedule.iterations
    return CostEstimate(seconds)


def _seconds_per_step(layer: Layer, weight: torch.Tensor, schedule: Schedule) -> float:
    groups, channels, k = weight.shape
    problem: Rows | Gram
    if uses_gram(weight):
        problem = Gram(
            weight,
            weight.new_zeros(groups, k, k),
            torch.zeros_like(weight),
            weight.new_zeros(groups, channels),
            BATCH_ROWS,
        )
    else:
        inputs = weight.new_zeros(groups, 2 * BATCH_ROWS, k)
        targets = weight.new_zeros(groups, 2 * BATCH_ROWS, channels)
        bias = weight.new_zeros(groups, 1, channels)
        problem = Rows(inputs, targets, bias, layer.activation)
    scale = weight.abs().max().clamp_min(1e-6) / 7
    # No warm start: its steps are the cheaper ones.
    short = replace(schedule, iterations=_WARM_UP_STEPS, warm_start=0.0)
    timed = replace(schedule, iterations=_TIMED_STEPS, warm_start=0.0)
    rounding = SoftRounding(weight, scale, torch.zeros_like(scale), -8, 7)
    _run(rounding, problem, short)
    began = monotonic()
    _run(rounding, problem, timed)
    return (monotonic() - began) / _TIMED_STEPS


def _run(rounding: SoftRounding, problem: Rows | Gram, schedule: Schedule) -> None:
    learn(rounding, problem, schedule, torch.Generator(), lambda _: None)
    if rounding.alpha.is_cuda:
        torch.cuda.synchronize()
