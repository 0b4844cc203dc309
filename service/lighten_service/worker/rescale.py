"""Scaling the channels between layers, the same for both engines."""

from dataclasses import dataclass

import torch

from lighten_service.worker.kernels import Kernel
from lighten_service.worker.quantized import Moments


@dataclass(frozen=True, slots=True)
class ChannelScales:
    """Factors of the channels around one layer, above 0, float32.

    The layer will write its output channels times ``output``, shape (out,), given that its input
    channels come times ``input``, shape (in,).
    """

    input: torch.Tensor
    output: torch.Tensor


def rescaled_weight(weight: torch.Tensor, kernel: Kernel, scales: ChannelScales) -> torch.Tensor:
    """Return a weight, in the layout of `Kernel`, that does what the scales say."""
    first, second = scales.output, 1 / scales.input.to(weight)
    if kernel.transposed:
        first, second = second, first
    # The second axis of a weight counts the channels of one group, the first those of all.
    by_row = second.to(weight).reshape(kernel.groups, -1)
    by_row = by_row.repeat_interleave(len(weight) // kernel.groups, dim=0)
    factors = first.to(weight)[:, None] * by_row
    return weight * factors.reshape(*factors.shape, *[1] * (weight.dim() - 2))


def rescaled_moments(moments: Moments, scales: ChannelScales) -> Moments:
    """Return the moments of a layer's output times the scales."""
    factors = scales.output.to(moments.mean)
    return Moments(moments.mean * factors, moments.std * factors)
