"""Blockwise weights in aimet-torch."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from aimet_torch.quantsim import QuantizationSimModel
from aimet_torch.quantsim.config_utils import (
    set_blockwise_quantization_for_weights,
    set_grouped_blockwise_quantization_for_weights,
)
from torch import nn

from lighten import v1 as pb
from lighten_service.worker import quantsim
from lighten_service.worker.engines.blocks import LOW_POWER_BITS, Weighted, require_blocks
from lighten_service.worker.engines.torch_operators import LAYERS, Operator


def set_blocks(
    sim: QuantizationSimModel,
    operators: Iterable[Operator],
    quantization: pb.QuantizationConfig,
    excluded: Collection[str],
) -> None:
    """Give weights a scale for each block of input channels.

    Args:
        sim: not yet calibrated.
        operators: of the model.
        quantization: with a blockwise granularity and a block size.
        excluded: names of the operators that keep the quantizers they have.

    Raises:
        InvalidArgument: BLOCKWISE_NOT_APPLICABLE.
    """
    layers: dict[str, Any] = {}
    for operator in operators:
        layer: Any = sim.model.get_submodule(operator.name)
        if operator.name in excluded or not isinstance(layer, LAYERS):
            continue
        quantizers: Any = layer.param_quantizers
        if quantizers["weight"] is not None:
            layers[operator.name] = layer
    names = require_blocks((_weighted(*item) for item in layers.items()), quantization.block_size)
    if names:  # AIMET fails on none
        _set([layers[name] for name in names], sim, quantization)


def _set(
    layers: Sequence[nn.Module], sim: QuantizationSimModel, quantization: pb.QuantizationConfig
) -> None:
    bits, size = quantsim.weight_bits(quantization), quantization.block_size
    if quantization.weight_granularity == pb.GRANULARITY_LOW_POWER_BLOCKWISE:
        set_grouped_blockwise_quantization_for_weights(
            sim, layers, bits, True, LOW_POWER_BITS, size, -1
        )
        return
    symmetric = quantization.weight_symmetry != pb.SYMMETRY_ASYMMETRIC
    set_blockwise_quantization_for_weights(sim, layers, bits, symmetric, size)


def _weighted(name: str, layer: Any) -> Weighted:
    if isinstance(layer, nn.Linear):
        return Weighted(name, True, layer.in_features)
    # Of a transposed convolution too: (in, out / groups, *kernel).
    plain = layer.groups == 1 and not layer.transposed and set(layer.kernel_size) == {1}
    return Weighted(name, plain, layer.in_channels)
