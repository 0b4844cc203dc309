"""Biases on the grid of integer kernels: input scale x weight scale, 32 bits.

An integer convolution adds its bias to the accumulator, whose grid the two operands fix. Runtimes
join dequantize, convolution and quantize to one integer operator where the bias stands on that
grid; newer ones bring a float bias there by themselves, older ones compute in float instead.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lighten_service.worker.graphs.coverage import moved_from
from lighten_service.worker.graphs.walk import array, constants, consumers, producers

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_LARGEST = 2**31 - 1
_SCALE, _INTEGERS, _DEQUANTIZED = "_scale", "_q", "_qdq"

Entry = dict[str, Any]


def bias_encodings(graph: onnx.GraphProto, document: Mapping[str, Any]) -> list[Entry]:
    """Return an entry for each bias of a float graph that the grid of its layer holds.

    Left out, and so left in float: biases of layers without two integer operands, of blockwise
    weights, biases that several layers read, and those that 32 bits cannot hold on that grid.

    Args:
        graph: the float graph that the encodings belong to.
        document: AIMET's encodings of version 2.0.0, without biases.
    """
    entries = {entry["name"]: entry for entry in document["encodings"]}
    known = constants(graph)
    readers = consumers(graph)
    writers = producers(graph)
    found = []
    for node in graph.node:
        if node.op_type not in _WITH_BIAS or len(node.input) < 3 or node.input[2] not in known:
            continue
        bias = node.input[2]
        data = next((n for n in moved_from(node.input[0], writers) if n in entries), "")
        weight = entries.get(node.input[1])
        if weight is None or not data or len(readers[bias]) > 1:
            continue
        values = np.asarray(array(known[bias]), np.float32)
        scale = _accumulator_scale(entries[data], weight)
        if scale is not None and _holds(scale, values):
            found.append(_entry(bias, scale))
    return found


def quantize_biases(model: onnx.ModelProto, entries: Iterable[Mapping[str, Any]]) -> int:
    """Turn the float biases of a QDQ graph into integers on the grids of `bias_encodings`.

    Entries of other tensors are passed over. Returns the number of biases.
    """
    graph = model.graph
    known = constants(graph)
    readers = consumers(graph)
    nodes = []
    for entry in entries:
        name = entry["name"]
        if entry["output_dtype"] != "int32" or name not in known:
            continue
        scale = np.asarray(entry["y_scale"], np.float32)
        integers = np.rint(array(known[name]) / scale.astype(np.float64)).astype(np.int32)
        graph.initializer.append(numpy_helper.from_array(integers, name + _INTEGERS))
        graph.initializer.append(numpy_helper.from_array(scale, name + _SCALE))
        inputs, output = [name + _INTEGERS, name + _SCALE], name + _DEQUANTIZED
        attributes: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        nodes.append(helper.make_node("DequantizeLinear", inputs, [output], output, **attributes))
        for reader in readers[name]:
            reader.input[2] = output
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return len(nodes)


def _accumulator_scale(
    data: Mapping[str, Any], weight: Mapping[str, Any]
) -> NDArray[np.float32] | None:
    """Return the grid of the products of two operands; None where they are no such integers."""
    integers = all("int" in entry["output_dtype"] for entry in (data, weight))
    if not integers or "block_size" in weight or np.ndim(data["y_scale"]):
        return None
    scale = np.asarray(weight["y_scale"], np.float32)
    return np.asarray(np.float32(data["y_scale"]) * scale, np.float32)


def _holds(scale: NDArray[np.float32], bias: NDArray[np.float32]) -> bool:
    if scale.shape not in ((), bias.shape) or bias.ndim != 1 or not (scale > 0).all():
        return False
    return bool((np.abs(bias) <= scale.astype(np.float64) * _LARGEST).all())


def _entry(name: str, scale: NDArray[np.float32]) -> Entry:
    axis = {"axis": 0} if scale.ndim else {}
    return {"name": name, "output_dtype": "int32", **axis, "y_scale": scale.tolist()}
