"""Ranges of weights, channel by channel, of a float graph."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten_service.worker.graphs.walk import array, attribute

# Smallest and largest value of each output channel, shape (channels, 2).
Ranges = NDArray[np.float64]


def weight_ranges(model: onnx.ModelProto, *, modules: bool) -> dict[str, Ranges]:
    """Return the ranges of each convolution's and linear layer's weight, in graph order.

    Layers are named by their node or, where ``modules`` exported the graph, by the module that
    holds the weight. Weights that the graph computes are left out.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, Ranges] = {}
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in tensors:
            continue
        values = array(tensors[node.input[1]]).astype(np.float64)
        axis = _output_axis(node)
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        name = node.input[1].removesuffix(".weight") if modules else node.name
        found[name] = np.stack([rows.min(1), rows.max(1)], axis=1)
    return found


# Axis of the weight that counts output channels (of one group, if transposed).
_LAYERS: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0
    return _LAYERS[node.op_type]
