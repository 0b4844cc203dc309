"""Shifts of mean outputs that quantization causes, measured or computed, and put into biases.

Nagel et al. 2019, arXiv:1906.04721: section 4.2 and appendices C and D.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

from lighten_service.worker.algorithms.weight_layers import SHARED_WEIGHT, sharing_layers
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.graphs.moments import Spread, propagate
from lighten_service.worker.kernels import Kernel
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import Check, Layer, QuantizedModel, Visit

_NO_GRID = "its weight has no integer grid of one scale, or one a channel"


@dataclass(frozen=True, slots=True)
class Correction:
    """What became of one layer: ``shift`` (channels,) was added to its bias, or None and why."""

    layer: str
    shift: torch.Tensor | None = None
    reason: str = ""


def correct_empirically(
    context: StepContext,
    quantized: QuantizedModel,
    samples: Samples,
    *,
    quantize_activations: bool,
) -> Iterator[Correction]:
    """Correct layer after layer, in place, by the mean outputs that both models have on data.

    Each layer is measured on what the corrected layers before it give (appendix D).
    """
    layers = quantized.layers()
    unfit = unfit_layers(quantized)
    batches = (batch.inputs for batch in samples.batches())
    walk = quantized.walk(batches, quantize_activations=quantize_activations, check=context.check)
    for done, visit in enumerate(walk, 1):
        name = visit.layer.name
        if name in unfit:
            yield Correction(name, reason=unfit[name])
        else:
            shift = mean_shift(quantized, visit, context.check)
            _add_to_bias(quantized, visit.layer, shift)
            yield Correction(name, shift)
        context.progress(done, len(layers), "layers")


def unfit_layers(quantized: QuantizedModel) -> dict[str, str]:
    """Return the layers that cannot be corrected by themselves, and why."""
    layers = quantized.layers()
    sharing = sharing_layers(quantized)
    with_quantizer = {q.layer for q in quantized.quantizers() if q.is_weight}
    unfit = {layer.name: SHARED_WEIGHT for layer in layers if layer.name in sharing}
    for layer in layers:
        if layer.name in with_quantizer and quantized.weight_grid(layer) is None:
            unfit[layer.name] = _NO_GRID
    return unfit


def mean_shift(quantized: QuantizedModel, visit: Visit, check: Check) -> torch.Tensor:
    """Return the mean of float output minus quantized output, over samples and positions.

    Outputs are those before the activation; shape (channels,).
    """
    layer = visit.layer
    grid, bias = quantized.weight_grid(layer), quantized.bias(layer)
    weight = quantized.weight(layer)
    if grid is not None:
        weight = grid.round(weight)
    total, count = torch.zeros((), dtype=torch.float64, device=weight.device), 0
    for batch, inputs in enumerate(visit.inputs):
        check()
        error = visit.float_output(batch) - layer.kernel.apply(inputs, weight, bias)
        by_channel = error.movedim(layer.kernel.output_axis, 0).flatten(1)
        total = total + by_channel.sum(1, dtype=torch.float64)
        count += by_channel.shape[1]
    return total / count


def correct_analytically(context: StepContext, model: WorkingModel) -> Iterator[Correction]:
    """Correct every layer whose mean input follows from batch norms, in place (section 4.2).

    Takes back what rounding the layer's own weight does.
    """
    quantized = model.quantized_model()
    layers = quantized.layers()
    means, unfit = mean_inputs(model), unfit_layers(quantized)
    for done, layer in enumerate(layers, 1):
        if layer.name in unfit:
            yield Correction(layer.name, reason=unfit[layer.name])
        else:
            yield _correct_by_mean(quantized, layer, means.get(layer.name))
        context.progress(done, len(layers), "layers")


def mean_inputs(model: WorkingModel) -> dict[str, torch.Tensor]:
    """Return the mean of each input channel, by layer, where batch norms tell it."""
    quantized, graph = model.quantized_model(), model.graph()
    outputs = {layer.output: layer.name for layer in quantized.layers() if layer.output}
    moments = quantized.moments()
    known = {
        output: Spread(moments[name].mean.double().cpu(), moments[name].std.double().cpu())
        for output, name in outputs.items()
        if name in moments
    }
    spreads = propagate(graph, known)
    inputs = {
        outputs[node.output[0]]: node.input[0]
        for node in graph.graph.node
        if node.output[0] in outputs
    }
    return {layer: spreads[name].mean for layer, name in inputs.items() if name in spreads}


def _correct_by_mean(
    quantized: QuantizedModel, layer: Layer, mean: torch.Tensor | None
) -> Correction:
    grid, weight = quantized.weight_grid(layer), quantized.weight(layer)
    if grid is None:
        return Correction(layer.name, reason="its weight is not quantized")
    if mean is None:
        return Correction(layer.name, reason="its mean input does not follow from batch norms")
    shift = mean_output(layer.kernel, weight - grid.round(weight), mean.to(weight))
    _add_to_bias(quantized, layer, shift)
    return Correction(layer.name, shift)


def mean_output(kernel: Kernel, weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return the mean output of a layer without bias for mean inputs, shape (channels,).

    ``mean`` has one value for each input channel. Zeros beyond the borders are not seen.
    """
    taps = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    groups = mean.view(kernel.groups, -1)
    if kernel.transposed:
        # An output meets one tap of so many in each direction.
        taps = taps.view(kernel.groups, groups.shape[1], -1) / prod(kernel.stride)
        return torch.einsum("gi,gio->go", groups, taps).flatten()
    taps = taps.view(kernel.groups, -1, groups.shape[1])
    return torch.einsum("gi,goi->go", groups, taps).flatten()


def _add_to_bias(quantized: QuantizedModel, layer: Layer, shift: torch.Tensor) -> None:
    bias = quantized.bias(layer)
    quantized.set_bias(layer, shift.float() if bias is None else bias + shift.to(bias))
