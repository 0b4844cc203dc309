"""Activations that keep values within bounds."""

from collections.abc import Mapping

import numpy as np
import onnx

from lighten_service.worker.graphs.walk import array, attribute


def activation_bounds(
    node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]
) -> tuple[float, float] | None:
    """Return the bounds of a Relu, or of a Clip with constant ones; None for other nodes."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    bounds = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
    for position, name in enumerate(node.input[1:]):
        if name and name not in known:
            return None
        if name:
            bounds[position] = array(known[name]).reshape(()).item()
    low, high = bounds
    return float(low), float(high)  # type: ignore[arg-type]
