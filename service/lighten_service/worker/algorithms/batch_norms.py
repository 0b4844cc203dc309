"""Batch norms measured anew in a quantized model into whose layers they were folded.

A batch norm gives each channel of its layer a mean and a standard deviation. Where the quantized
layer's output has others, ``r (y - mean) + batch norm's mean``, with ``r`` the ratio of the
standard deviations, gives it the batch norm's again. That is a factor on the weight's scale, which
leaves its integers as they are, and another bias: what AIMET reaches with
`reestimate_bn_stats` and `fold_all_batch_norms_to_scale` before anything is folded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lighten_service.worker.algorithms.weight_layers import SHARED_WEIGHT, sharing_layers
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.quantized import (
    Check,
    Layer,
    Moments,
    QuantizedModel,
    Visit,
    WeightGrid,
)

# Quantization changes deviations by some percent. A channel further off is all but constant, where
# the batch norm's epsilon counts and a ratio would blow up noise, or it sees other data.
_LARGEST_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Reestimated:
    """What became of one layer: the ratio of each channel (channels,), and how many of them were
    left at 1, their means alone restored; or no ratio and why."""

    layer: str
    ratio: torch.Tensor | None = None
    left_channels: int = 0
    reason: str = ""


def reestimate(
    context: StepContext, quantized: QuantizedModel, samples: Samples
) -> Iterator[Reestimated]:
    """Restore the statistics of layer after layer, in place, each on what the ones before give."""
    moments, total = quantized.moments(), len(quantized.layers())
    sharing = sharing_layers(quantized)
    batches = (batch.inputs for batch in samples.batches())
    walk = quantized.walk(batches, quantize_activations=True, check=context.check)
    for done, visit in enumerate(walk, 1):
        name = visit.layer.name
        if name in sharing and name in moments:
            yield Reestimated(name, reason=SHARED_WEIGHT)
        elif name in moments:
            yield _restore(quantized, visit, moments[name], context.check)
        context.progress(done, total, "layers")


def _restore(
    quantized: QuantizedModel, visit: Visit, moments: Moments, check: Check
) -> Reestimated:
    layer = visit.layer
    grid = quantized.weight_grid(layer)
    if grid is None or grid.scale.numel() != moments.mean.numel():
        return Reestimated(layer.name, reason="its weight has no scale for each channel")
    weight, bias = quantized.weight(layer), quantized.bias(layer)
    if bias is None:
        bias = torch.zeros_like(moments.mean).to(weight)
    mean, std = output_moments(visit, grid.round(weight), bias, check)
    wanted_mean, wanted_std = moments.mean.to(mean), moments.std.to(std)
    restored = (std > wanted_std / _LARGEST_RATIO) & (std < wanted_std * _LARGEST_RATIO)
    ratio = torch.where(restored, wanted_std / std, torch.ones_like(std))
    corrected = ratio * (bias - mean) + wanted_mean
    _scale(quantized, layer, grid, ratio.to(weight))
    quantized.set_bias(layer, corrected.to(weight))
    return Reestimated(layer.name, ratio, int((~restored).sum()))


def _scale(quantized: QuantizedModel, layer: Layer, grid: WeightGrid, ratio: torch.Tensor) -> None:
    weight = quantized.weight(layer)
    shape = [1] * weight.dim()
    shape[layer.kernel.channel_axis] = -1
    quantized.set_weight(layer, weight * ratio.view(shape))
    quantized.set_weight_scale(layer, grid.scale * ratio.view(grid.scale.shape))


def output_moments(
    visit: Visit, weight: torch.Tensor, bias: torch.Tensor, check: Check
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel of the quantized layer's output.

    Over samples and positions, before the activation; float64, shape (channels,).
    """
    kernel = visit.layer.kernel
    count = 0
    mean = square = torch.zeros_like(bias, dtype=torch.float64)
    for inputs in visit.inputs:
        check()
        output = kernel.apply(inputs, weight, bias).movedim(kernel.output_axis, 0).flatten(1)
        # Welford's update for whole batches: a mean far from 0 costs no digits.
        size = output.shape[1]
        batch_mean = output.mean(1, dtype=torch.float64)
        deviation = (output.double() - batch_mean[:, None]).square().sum(1)
        moved = batch_mean - mean
        square = square + deviation + moved**2 * (count * size / (count + size))
        mean = mean + moved * (size / (count + size))
        count += size
    return mean, (square / count).sqrt()
