"""AdaRound."""

from time import monotonic

import torch

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker import analyses
from lighten_service.worker.algorithms import unfold
from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.algorithms.recalibration import recalibrate
from lighten_service.worker.algorithms.reconstruction import output_error
from lighten_service.worker.algorithms.rounding import (
    Schedule,
    SoftRounding,
    learn,
    problem_of,
    within_bounds,
)
from lighten_service.worker.algorithms.rounding_cost import CostEstimate, estimate
from lighten_service.worker.algorithms.weight_layers import (
    WeightLayers,
    choose_layers,
    choose_samples,
)
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import QuantizedModel, Visit, WeightGrid

FORMAT_VERSION = 1
# AIMET recommends 500 to 1,000.
_ENOUGH_SAMPLES = 500
# Share of the step's progress that is learning; the rest chooses activation ranges anew.
_LEARNING = 0.9


class AdaRound:
    """Learns the roundings of one layer after the other, on the inputs that the rounded layers
    before it give. A layer whose output comes no closer to FP32 so keeps nearest rounding."""

    def run(self, context: StepContext, model: WorkingModel, parameters: pb.AdaRound) -> Findings:
        quantized = model.quantized_model()
        selector = parameters.layers if parameters.HasField("layers") else None
        layers = choose_layers(quantized, selector, "plan.steps.steps.ada_round.layers")
        if not layers.chosen:
            raise NotApplicable(f"no layer can be rounded: {layers.reasons or 'there is none'}")
        samples = choose_samples(
            context, parameters.max_samples, _ENOUGH_SAMPLES, "roundings are learnt"
        )
        schedule = _schedule(parameters)
        cost = estimate(quantized, layers.chosen, schedule, context.check)
        context.log(
            f"rounding {len(cost.layers)} layers will take about {cost.total:.0f} s, most of it "
            f"for {_dearest(cost)}"
        )
        work = _Rounding(context.part(0.0, _LEARNING), quantized, schedule, cost)
        batches = (batch.inputs for batch in samples.batches())
        for visit in quantized.walk(batches, quantize_activations=False, check=context.check):
            grid = layers.chosen.get(visit.layer.name)
            if grid is not None:
                work.round(visit, grid)
        recalibrate(context.part(_LEARNING, 1.0), quantized, required_calibration(context))
        done = layers.reached([row["layer"] for row in work.rows])
        return _findings(work.rows, done, cost.total, samples.count)


class _Rounding:
    """Rounds the layers that a walk visits."""

    def __init__(
        self,
        context: StepContext,
        quantized: QuantizedModel,
        schedule: Schedule,
        cost: CostEstimate,
    ) -> None:
        self.rows: list[analyses.RoundedLayer] = []
        self._context, self._quantized = context, quantized
        self._schedule, self._cost = schedule, cost
        self._generator = torch.Generator().manual_seed(context.rng().getrandbits(63))

    def round(self, visit: Visit, grid: WeightGrid) -> None:
        """Round one layer, and set its weight to what it was rounded to."""
        began, layer = monotonic(), visit.layer
        weight, bias = self._quantized.weight(layer), self._quantized.bias(layer)
        learnt = self._learn(visit, weight, bias, grid)
        nearest = grid.round(weight)
        before = output_error(visit, nearest, bias, self._context.check)
        after = output_error(visit, learnt, bias, self._context.check)
        better = after.noise < before.noise
        self._quantized.set_weight(layer, learnt if better else nearest)
        seconds = monotonic() - began
        self._cost.finish(layer.name, seconds)
        self.rows.append(
            {
                "layer": layer.name,
                "nearest_error": before.relative,
                "learnt_error": after.relative,
                "kept_nearest": not better,
                "estimated_seconds": self._cost.layers[layer.name],
                "seconds": seconds,
            }
        )
        self._context.log(
            f"{layer.name}: error of the output {before.relative:.2%} with nearest rounding, "
            f"{after.relative:.2%} learnt, in {seconds:.1f} s; about {self._cost.remaining:.0f} s "
            "left"
        )

    def _learn(
        self, visit: Visit, weight: torch.Tensor, bias: torch.Tensor | None, grid: WeightGrid
    ) -> torch.Tensor:
        kernel, name = visit.layer.kernel, visit.layer.name
        part = self._context.part(*self._cost.share(name))
        iterations = self._schedule.iterations
        rounding = SoftRounding(
            unfold.weight_matrix(kernel, weight),
            unfold.channel_matrix(kernel, grid.scale),
            unfold.channel_matrix(kernel, grid.offset),
            grid.low,
            grid.high,
        )
        problem = problem_of(visit, bias, self._generator, self._context.check)
        matrix = learn(
            rounding,
            problem,
            self._schedule,
            self._generator,
            lambda step: part.progress(step, iterations, "iterations"),
        )
        learnt = unfold.weight_of_matrix(kernel, matrix, visit.layer.weight_shape)
        return within_bounds(visit.layer, learnt, grid, problem)


def _schedule(parameters: pb.AdaRound) -> Schedule:
    return Schedule(
        parameters.iterations,
        parameters.regularization,
        parameters.warm_start,
        parameters.beta_start,
        parameters.beta_end,
    )


def _dearest(cost: CostEstimate) -> str:
    first = sorted(cost.layers.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in first)


def _findings(
    rows: list[analyses.RoundedLayer], layers: WeightLayers, estimated_seconds: float, samples: int
) -> Findings:
    kept = sum(row["kept_nearest"] for row in rows)
    summary = f"roundings of {len(rows) - kept} layers learnt on {samples} samples"
    if kept:
        summary += f"; {kept} kept nearest rounding, which is no worse there"
    if layers.left:
        summary += f"; {len(layers.left)} left: {layers.reasons}"
    return Findings(
        summary,
        {
            "rounded_layers": len(rows) - kept,
            "kept_nearest": kept,
            "left_layers": len(layers.left),
            "calibration_samples": samples,
            "estimated_seconds": estimated_seconds,
        },
        analyses.Rounding(format_version=FORMAT_VERSION, layers=rows, left=layers.left),
    )
