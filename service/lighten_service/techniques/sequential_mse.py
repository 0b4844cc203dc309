"""Sequential MSE."""

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.algorithms.recalibration import recalibrate
from lighten_service.worker.algorithms.scales import choose_scale, problem_of
from lighten_service.worker.algorithms.weight_layers import (
    WeightLayers,
    choose_layers,
    choose_samples,
)
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import QuantizedModel, Visit, WeightGrid

FORMAT_VERSION = 1
# A scale a channel is little to learn; fewer samples leave channels without a typical input.
_ENOUGH_SAMPLES = 32
# Share of the step's progress that is the search; the rest chooses activation ranges anew.
_SEARCH = 0.8


class SequentialMse:
    """Chooses the weight scales of one layer after the other, of any width, on the inputs that the
    layers before it give."""

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.SequentialMse
    ) -> Findings:
        quantized = model.quantized_model()
        selector = parameters.layers if parameters.HasField("layers") else None
        layers = choose_layers(quantized, selector, "plan.steps.steps.sequential_mse.layers")
        if not layers.chosen:
            raise NotApplicable(f"no layer has scales to choose: {layers.reasons or 'none at all'}")
        samples = choose_samples(
            context, parameters.max_samples, _ENOUGH_SAMPLES, "scales are chosen"
        )
        part = context.part(0.0, _SEARCH)
        rows: list[analyses.ScaledLayer] = []
        batches = (batch.inputs for batch in samples.batches())
        for visit in quantized.walk(batches, quantize_activations=False, check=context.check):
            grid = layers.chosen.get(visit.layer.name)
            if grid is not None:
                rows.append(_rescale(part, quantized, visit, grid, parameters.candidates))
                part.progress(len(rows), len(layers.chosen), "layers")
        recalibrate(context.part(_SEARCH, 1.0), quantized, required_calibration(context))
        done = layers.reached([row["layer"] for row in rows])
        return _findings(rows, done, samples.count)


def _rescale(
    context: StepContext,
    quantized: QuantizedModel,
    visit: Visit,
    grid: WeightGrid,
    candidates: int,
) -> analyses.ScaledLayer:
    """Set the best scales of one layer's weight."""
    layer = visit.layer
    problem = problem_of(visit, quantized.bias(layer), context.check)
    weight = quantized.weight(layer)
    choice = choose_scale(layer, weight, grid, problem, candidates, context.check)
    quantized.set_weight_scale(layer, choice.scale)
    shares = choice.scale / grid.scale
    return {
        "layer": layer.name,
        "error_before": choice.error_before,
        "error_after": choice.error_after,
        "range_shares": [round(float(share), 6) for share in shares.flatten()],
    }


def _findings(rows: list[analyses.ScaledLayer], layers: WeightLayers, samples: int) -> Findings:
    changed = sum(any(share < 1 for share in row["range_shares"]) for row in rows)
    summary = f"scales of {changed} of {len(rows)} layers changed, on {samples} samples"
    if layers.left:
        summary += f"; {len(layers.left)} left: {layers.reasons}"
    return Findings(
        summary,
        {
            "rescaled_layers": changed,
            "left_layers": len(layers.left),
            "calibration_samples": samples,
        },
        analyses.Scaling(format_version=FORMAT_VERSION, layers=rows, left=layers.left),
    )
