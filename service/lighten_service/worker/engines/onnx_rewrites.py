"""Writing a graph in operators that have integer kernels. The function stays the same."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lighten_service.worker.graphs.walk import array, constants, consumers, producers

_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def rewrite(graph: onnx.GraphProto) -> None:
    """Apply every rewrite below. Constants are initializers; those left unread stay behind."""
    reshape_constants(graph)
    join_biases(graph)
    multiply_by_reciprocals(graph)


def reshape_constants(graph: onnx.GraphProto) -> int:
    """Do once what the graph does to the shape of a constant at every run; return how often."""
    known = constants(graph)
    done = 0
    for node in list(graph.node):
        if node.op_type not in _RESHAPING or not all(name in known for name in node.input):
            continue
        found: Any = ReferenceEvaluator(node).run(None, {n: array(known[n]) for n in node.input})
        values = np.asarray(found[0])
        known[node.output[0]] = _add_constant(graph, node.output[0], values)
        graph.node.remove(node)
        done += 1
    return done


def join_biases(graph: onnx.GraphProto) -> int:
    """Give each Conv without a bias the constant that is added to its output; return how many.

    Some exporters (Paddle's) write the two apart, and then each gets a quantizer of its own.
    """
    known = constants(graph)
    writers = producers(graph)
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    joined = 0
    for add in [node for node in graph.node if node.op_type == "Add"]:
        added, data = sorted(add.input, key=lambda name: name not in known)
        conv = writers.get(data)
        if conv is None or conv.op_type != "Conv" or len(conv.input) != 2 or added not in known:
            continue
        if len(readers[data]) > 1 or data in outputs or conv.input[1] not in known:
            continue
        bias = _as_bias(array(known[added]), known[conv.input[1]])
        if bias is None:
            continue
        name = f"{add.output[0]}.bias"
        _add_constant(graph, name, bias)
        conv.input.append(name)
        conv.output[0] = add.output[0]
        graph.node.remove(add)
        joined += 1
    return joined


def multiply_by_reciprocals(graph: onnx.GraphProto) -> int:
    """Turn each division by a float constant into a multiplication; return how many.

    Runtimes have an integer kernel for the one and not for the other.
    """
    known = constants(graph)
    changed = 0
    for node in graph.node:
        if node.op_type != "Div" or node.input[1] not in known:
            continue
        divisor = array(known[node.input[1]])
        if divisor.dtype != np.float32 or not (np.abs(divisor) > np.finfo(np.float32).tiny).all():
            continue
        node.op_type = "Mul"
        node.input[1] = f"{node.output[0]}.reciprocal"
        _add_constant(graph, node.input[1], (1.0 / divisor.astype(np.float64)).astype(np.float32))
        changed += 1
    return changed


def _as_bias(values: NDArray[np.generic], weight: onnx.TensorProto) -> NDArray[np.generic] | None:
    """Return a constant of one value for each output channel as a vector, None for others."""
    channels, spatial = weight.dims[0], len(weight.dims) - 2
    fits = (*[1] * (values.ndim - spatial - 1), channels, *[1] * spatial)
    return values.reshape(channels) if values.shape == fits and values.ndim <= spatial + 2 else None


def _add_constant(
    graph: onnx.GraphProto, name: str, values: NDArray[np.generic]
) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(values, name)
    graph.initializer.append(tensor)
    return tensor
