"""Scaling the channels of layers in a float ONNX graph."""

from collections.abc import Mapping

import numpy as np
import onnx
import torch

from lighten_service.worker.engines.onnx_heavy import heavy_layers
from lighten_service.worker.engines.onnx_layers import LayerMoments
from lighten_service.worker.engines.onnx_parameters import Parameters
from lighten_service.worker.rescale import ChannelScales, rescaled_moments, rescaled_weight


def rescale(
    model: onnx.ModelProto, scales: Mapping[str, ChannelScales], moments: LayerMoments
) -> LayerMoments:
    """Scale channels of layers in place; return the moments of the layers as they are now.

    Args:
        scales: by layer; no two of them share a weight.
    """
    parameters = Parameters((model,))
    for heavy in heavy_layers(model):
        factors = scales.get(heavy.layer.name)
        if factors is None:
            continue
        values = parameters.get(heavy.weight)
        weight = torch.tensor(values.T if heavy.transposed else values)
        changed = rescaled_weight(weight, heavy.layer.kernel, factors).numpy()
        parameters.set(heavy.weight, changed.T if heavy.transposed else changed)
        if heavy.bias:
            bias = parameters.get(heavy.bias)
            parameters.set(heavy.bias, np.multiply(bias, factors.output.cpu().numpy()))
    return {
        name: rescaled_moments(seen, scales[name]) if name in scales else seen
        for name, seen in moments.items()
    }
