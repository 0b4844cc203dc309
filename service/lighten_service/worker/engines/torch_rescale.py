"""Scaling the channels of layers in a prepared module."""

from collections.abc import Mapping
from typing import Any

import torch

from lighten_service.worker.engines.torch_equalize import MomentsByLayer
from lighten_service.worker.engines.torch_layers import layer_kernel
from lighten_service.worker.rescale import ChannelScales, rescaled_moments, rescaled_weight


@torch.no_grad()
def rescale(
    module: torch.fx.GraphModule, scales: Mapping[str, ChannelScales], moments: MomentsByLayer
) -> MomentsByLayer:
    """Scale channels of layers in place; return the moments of the layers as they are now."""
    for name, factors in scales.items():
        layer: Any = module.get_submodule(name)
        layer.weight.copy_(rescaled_weight(layer.weight, layer_kernel(layer), factors))
        if layer.bias is not None:
            layer.bias.mul_(factors.output.to(layer.bias))
    return {
        name: rescaled_moments(seen, scales[name]) if name in scales else seen
        for name, seen in moments.items()
    }
