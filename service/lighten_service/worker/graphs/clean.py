"""Making a QDQ graph clean: what AIMET leaves in it and no runtime needs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lighten_service.worker.graphs.activations import activation_bounds
from lighten_service.worker.graphs.walk import (
    array,
    attribute,
    constants,
    consumers,
    graphs,
    producers,
)

# They have integer kernels that need both operands quantized, scalars too.
_INTEGER_BINARY = frozenset({"Add", "Mul"})
_QUANTIZE = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LIMITS: Mapping[int, tuple[int, int]] = {
    onnx.TensorProto.INT4: (-8, 7),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT16: (0, 65535),
}


def clean_qdq(model: onnx.ModelProto) -> None:
    """Clean a QDQ graph of either engine in place; its outputs stay equal bit for bit.

    Scalar constants (bounds of Clip) become plain floats again, a Relu or Clip that the following
    QuantizeLinear enforces anyway goes, then each grid that repeats the one before it, and with
    them the constants and shapes that nothing uses.
    """
    fold_scalar_constants(model)
    drop_enforced_activations(model)
    merge_equal_grids(model)
    remove_unused(model)


def fold_scalar_constants(model: onnx.ModelProto) -> int:
    """Replace quantized scalar constants by their float values; return how many.

    Those that feed an Add or Mul stay, because its integer kernel needs them on a grid.
    """
    graph = model.graph
    known = constants(graph)
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    folded = 0
    for node in list(graph.node):
        if node.op_type not in _QUANTIZE or node.input[0] not in known:
            continue
        value = known[node.input[0]]
        users = {user.op_type for user in readers[node.output[0]]}
        if int(np.prod(value.dims)) != 1 or node.output[0] in outputs or users & _INTEGER_BINARY:
            continue
        result = _evaluate(node, known)
        tensor = numpy_helper.from_array(result, node.output[0])
        known[node.output[0]] = tensor
        graph.initializer.append(tensor)
        graph.node.remove(node)
        folded += node.op_type == "DequantizeLinear"
    return folded


def drop_enforced_activations(model: onnx.ModelProto) -> int:
    """Remove each Relu and Clip whose effect the QuantizeLinear after it has too; return how many.

    A value beyond a bound saturates to the same integer as the bound itself exactly if the bound
    is quantized to the end of the integer range.
    """
    graph = model.graph
    known = constants(graph)
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    dropped = 0
    for node in list(graph.node):
        bounds = activation_bounds(node, known)
        users = readers[node.output[0]] if node.output else []
        if bounds is None or not users or node.output[0] in outputs:
            continue
        if not all(_enforces(user, node.output[0], bounds, known) for user in users):
            continue
        for user in users:
            user.input[0] = node.input[0]
        readers[node.input[0]] = [r for r in readers[node.input[0]] if r is not node] + users
        graph.node.remove(node)
        dropped += 1
    return dropped


def merge_equal_grids(model: onnx.ModelProto) -> int:
    """Remove each QuantizeLinear that repeats the grid its input stands on; return how many."""
    graph = model.graph
    known = constants(graph)
    writers = producers(graph)
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    merged = 0
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        before = writers.get(node.input[0])
        if before is None or before.op_type != "DequantizeLinear" or before.input[0] in known:
            continue
        if node.output[0] in outputs or not _same_grid(node, before, known):
            continue
        for reader in readers[node.output[0]]:
            reader.input[0] = before.input[0]
        readers[node.input[0]] = [r for r in readers[node.input[0]] if r is not node]
        readers[before.input[0]] += readers[node.output[0]]
        graph.node.remove(node)
        merged += 1
        if not readers[node.input[0]] and before.output[0] not in outputs:
            graph.node.remove(before)
    return merged


def remove_unused(model: onnx.ModelProto) -> None:
    """Remove constants that nothing reads, and notes on tensors that do not exist."""
    graph = model.graph
    used = {name for g in graphs(graph) for node in g.node for name in node.input}
    used |= {value.name for g in graphs(graph) for value in g.output}
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] not in used]:
        graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    written = {name for node in graph.node for name in node.output}
    for info in [i for i in graph.value_info if i.name not in written]:
        graph.value_info.remove(info)


def _same_grid(
    one: onnx.NodeProto, other: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]
) -> bool:
    if len(one.input) != len(other.input) or attribute(one, "axis", 1) != attribute(
        other, "axis", 1
    ):
        return False
    pairs = zip(list(one.input)[1:], list(other.input)[1:], strict=True)
    return all(
        a in known
        and b in known
        and known[a].data_type == known[b].data_type
        and np.array_equal(array(known[a]), array(known[b]))
        for a, b in pairs
    )


def _evaluate(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> NDArray[np.generic]:
    """Compute a quantize or dequantize node of one element as ONNX defines it."""
    values: NDArray[Any] = array(known[node.input[0]])
    scale: NDArray[Any] = array(known[node.input[1]]).reshape(())
    zero_point = _zero_point(node, known)
    shift = int(array(zero_point))
    if node.op_type == "DequantizeLinear":
        return np.asarray((values.astype(np.int64) - shift) * scale, scale.dtype)
    low, high = _LIMITS[zero_point.data_type]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(zero_point.data_type)
    return np.asarray(np.clip(np.rint(values / scale) + shift, low, high), dtype)


def _zero_point(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    """Return the zero point as a tensor of one element, made up where the node has none."""
    if len(node.input) > 2 and node.input[2]:
        tensor = known[node.input[2]]
        return numpy_helper.from_array(array(tensor).reshape(()))
    return numpy_helper.from_array(np.zeros((), np.uint8))


def _enforces(
    user: onnx.NodeProto,
    name: str,
    bounds: tuple[float, float],
    known: Mapping[str, onnx.TensorProto],
) -> bool:
    if user.op_type != "QuantizeLinear" or user.input[0] != name:
        return False
    scale = array(known[user.input[1]])
    zero_point = _zero_point(user, known) if scale.size == 1 else None
    if zero_point is None or zero_point.data_type not in _LIMITS:
        return False
    low, high = _LIMITS[zero_point.data_type]
    ends = np.rint(np.asarray(bounds, np.float32) / np.float32(scale.item())) + int(
        array(zero_point)
    )
    return bool(ends[0] <= low and ends[1] >= high)
