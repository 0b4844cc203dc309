"""Scales that bring the channels of activations closer together.

Meller et al. 2019, arXiv:1902.01917; the strength is that of Xiao et al. 2022, arXiv:2211.10438,
section 4.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.graphs.channels import ChannelSet
from lighten_service.worker.quantized import Layer, QuantizedModel, Visit
from lighten_service.worker.rescale import ChannelScales

# Weights must make up for what a scale does, so that channels of hardly any range count as wider.
_SMALLEST_SHARE = 1e-3
_LARGEST_SCALE = 64.0
# A channel that comes as close to the bound of a Clip is taken as cut off by it.
_AT_BOUND = 0.999

# Smallest and largest value of each channel, shape (channels, 2).
Ranges = torch.Tensor


@dataclass(frozen=True, slots=True)
class EqualizedSet:
    """Tensors whose channels are multiplied by ``scales``, shape (channels,), and the ranges that
    the layers behind them saw before."""

    tensors: ChannelSet
    ranges: Ranges
    scales: torch.Tensor


def input_ranges(
    context: StepContext, quantized: QuantizedModel, samples: Samples
) -> dict[str, Ranges]:
    """Return the ranges that the inputs of each layer have in the float model, by layer."""
    total, found = len(quantized.layers()), dict[str, Ranges]()
    batches = (batch.inputs for batch in samples.batches())
    walk = quantized.walk(batches, quantize_activations=False, check=context.check)
    for done, visit in enumerate(walk, 1):
        found[visit.layer.name] = _ranges(visit)
        context.progress(done, total, "layers")
    return found


def equalized_sets(
    quantized: QuantizedModel,
    sets: Iterable[ChannelSet],
    ranges: Mapping[str, Ranges],
    strength: float,
) -> tuple[list[EqualizedSet], dict[str, str]]:
    """Return the sets that gain from scales, with these; and why others do not, by the layer that
    writes first.

    Args:
        quantized: tells which weights have a scale for each channel.
        sets: of the model.
        ranges: of the inputs of layers, by layer.
        strength: 0 to 1; depthwise layers with a scale for each channel take all.
    """
    tolerant = {layer.name for layer in quantized.layers() if _is_tolerant(quantized, layer)}
    found, left = [], {}
    for one in sets:
        if one.obstacle or not one.readers or not ranges.keys() >= set(one.readers):
            left[one.writers[0]] = one.obstacle or "no calibration data reach a layer behind it"
            continue
        seen = _union([ranges[reader] for reader in one.readers])
        share = 1.0 if tolerant.issuperset(one.readers) else strength
        scales = channel_scales(seen.abs().amax(1), share, one.bound)
        if bool((scales > 1).any()):
            found.append(EqualizedSet(one, seen, scales))
        else:
            left[one.writers[0]] = "its channels reach as far as they can"
    return found, left


def channel_scales(largest: torch.Tensor, strength: float, bound: float) -> torch.Tensor:
    """Return the factor of each channel, 1 to 64.

    Args:
        largest: magnitude of each channel, shape (channels,). Channels of zeros stay.
        strength: 0 leaves all as they are, 1 makes all magnitudes equal.
        bound: of a Clip that no magnitude may pass; may be infinity.
    """
    top = largest.max()
    scales = (top / largest.clamp_min(top * _SMALLEST_SHARE)) ** strength
    if math.isfinite(bound):
        scales = scales.minimum(bound / largest)
        scales = torch.where(largest < _AT_BOUND * bound, scales, 1.0)
    return torch.where(largest > 0, scales.clamp(1.0, _LARGEST_SCALE), 1.0)


def layer_scales(
    layers: Iterable[Layer], equalized: Iterable[EqualizedSet]
) -> dict[str, ChannelScales]:
    """Return what `WorkingModel.rescale` takes."""
    read: dict[str, torch.Tensor] = {}
    written: dict[str, torch.Tensor] = {}
    for one in equalized:
        read |= dict.fromkeys(one.tensors.readers, one.scales)
        written |= dict.fromkeys(one.tensors.writers, one.scales)
    return {
        layer.name: ChannelScales(
            read.get(layer.name, torch.ones(layer.input_channels)),
            written.get(layer.name, torch.ones(layer.output_channels)),
        )
        for layer in layers
        if layer.name in read or layer.name in written
    }


def _is_tolerant(quantized: QuantizedModel, layer: Layer) -> bool:
    """Say whether each input channel has a weight scale of its own, which takes any factor."""
    grid = quantized.weight_grid(layer)
    one_each = layer.input_channels == layer.kernel.groups > 1
    return one_each and grid is not None and grid.per_channel


def _ranges(visit: Visit) -> Ranges:
    axis = visit.layer.kernel.output_axis
    rows = [values.movedim(axis, 0).flatten(1) for values in visit.float_inputs]
    return _union([torch.stack([row.amin(1), row.amax(1)], dim=1).cpu() for row in rows])


def _union(ranges: list[Ranges]) -> Ranges:
    stacked = torch.stack(ranges)
    return torch.stack([stacked[..., 0].amin(0), stacked[..., 1].amax(0)], dim=1)
