"""Quantization grids: from AIMET's encodings file, from a QDQ graph, and their comparison."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten_service.worker.graphs.walk import array, constants
from lighten_service.worker.model import Encoding

# Width and sign of the integer types of ONNX.
_INTEGERS: Mapping[int, tuple[int, bool]] = {
    onnx.TensorProto.INT4: (4, True),
    onnx.TensorProto.UINT4: (4, False),
    onnx.TensorProto.INT8: (8, True),
    onnx.TensorProto.UINT8: (8, False),
    onnx.TensorProto.INT16: (16, True),
    onnx.TensorProto.UINT16: (16, False),
    onnx.TensorProto.INT32: (32, True),
}
_SCALE_SUFFIX = "_scale"


def read_encodings(document: Mapping[str, Any], weights: Collection[str]) -> tuple[Encoding, ...]:
    """Return the grids in an AIMET encodings file of version 2.0.0, in the order of the file.

    Args:
        document: the parsed JSON.
        weights: names of the tensors that are weights or biases; the file does not tell.
    """
    found = []
    for entry in document["encodings"]:
        dtype: str = entry["output_dtype"]
        signed = not dtype.startswith("u")
        scales = np.atleast_1d(np.asarray(entry["y_scale"], np.float64)).ravel()
        zero_points = np.atleast_1d(np.asarray(entry.get("y_zero_point", 0), np.int64)).ravel()
        found.append(
            _encoding(
                entry["name"],
                bits=int(dtype.removeprefix("u").removeprefix("int")),
                signed=signed,
                scales=scales,
                zero_points=np.broadcast_to(zero_points, scales.shape),
                is_weight=entry["name"] in weights,
            )
        )
    return tuple(found)


def read_grids(model: onnx.ModelProto) -> dict[str, Encoding]:
    """Return the grid of every tensor that a QDQ graph quantizes, by the tensor's name.

    AIMET calls the scale of tensor ``t`` ``t_scale``; a scale with another name gives the tensor
    the name of what is quantized.
    """
    known = constants(model.graph)
    found: dict[str, Encoding] = {}
    for node in model.graph.node:
        stored = node.op_type == "DequantizeLinear" and node.input[0] in known
        if node.op_type != "QuantizeLinear" and not stored:
            continue
        scale_name = node.input[1]
        tensor = (
            scale_name.removesuffix(_SCALE_SUFFIX)
            if scale_name.endswith(_SCALE_SUFFIX)
            else node.input[0]
        )
        bits, signed = _INTEGERS[_integer_type(node, known)]
        scales = np.atleast_1d(array(known[scale_name])).astype(np.float64).ravel()
        found[tensor] = _encoding(
            tensor,
            bits=bits,
            signed=signed,
            scales=scales,
            zero_points=np.broadcast_to(_zero_points(node, known), scales.shape),
            is_weight=stored,
        )
    return found


def grid_differences(grids: Mapping[str, Encoding], encodings: Iterable[Encoding]) -> list[str]:
    """Return what differs between the grids of a graph and the encodings, one line a tensor.

    Scales are compared as the graph stores them, in single precision. Encodings that the graph
    does not use are no difference.
    """
    expected = {encoding.tensor: encoding for encoding in encodings}
    lines = []
    for name, grid in grids.items():
        other = expected.get(name)
        if other is None:
            lines.append(f"{name}: in the graph, not in the encodings")
        elif (grid.bits, grid.signed) != (other.bits, other.signed):
            lines.append(f"{name}: {_dtype(grid)} in the graph, {_dtype(other)} in the encodings")
        elif not np.array_equal(_single(grid.scales), _single(other.scales)):
            lines.append(f"{name}: scales {grid.scales[:3]} and {other.scales[:3]}")
        elif grid.offsets != other.offsets:
            lines.append(f"{name}: offsets {grid.offsets[:3]} and {other.offsets[:3]}")
    return lines


def _encoding(
    tensor: str,
    *,
    bits: int,
    signed: bool,
    scales: NDArray[np.float64],
    zero_points: NDArray[np.int64],
    is_weight: bool,
) -> Encoding:
    middle = 0 if signed else 2 ** (bits - 1)
    return Encoding(
        tensor=tensor,
        bits=bits,
        signed=signed,
        symmetric=bool((zero_points == middle).all()),
        scales=tuple(scales.tolist()),
        offsets=tuple((-zero_points).tolist()),
        is_weight=is_weight,
    )


def _integer_type(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> int:
    """Return the integer type of a quantize or dequantize node, which its zero point tells."""
    if len(node.input) > 2 and node.input[2]:
        return known[node.input[2]].data_type
    if node.op_type == "DequantizeLinear":
        return known[node.input[0]].data_type
    for attribute in node.attribute:
        if attribute.name == "output_dtype" and attribute.i:
            return int(attribute.i)
    return onnx.TensorProto.UINT8


def _zero_points(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> NDArray[np.int64]:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(1, np.int64)
    return np.atleast_1d(array(known[node.input[2]])).astype(np.int64).ravel()


def _single(scales: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(scales, np.float32)


def _dtype(encoding: Encoding) -> str:
    return f"{'' if encoding.signed else 'u'}int{encoding.bits}"
