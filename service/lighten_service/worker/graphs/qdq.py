"""Quantization grids: from AIMET's encodings file, from a QDQ graph, and their comparison."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from lighten_service.worker.graphs.walk import array, constants, producers
from lighten_service.worker.model import Encoding

# Width and sign of the types that tensors of ONNX are quantized to.
_TYPES: Mapping[int, tuple[int, bool]] = {
    onnx.TensorProto.INT4: (4, True),
    onnx.TensorProto.UINT4: (4, False),
    onnx.TensorProto.INT8: (8, True),
    onnx.TensorProto.UINT8: (8, False),
    onnx.TensorProto.INT16: (16, True),
    onnx.TensorProto.UINT16: (16, False),
    onnx.TensorProto.INT32: (32, True),
    onnx.TensorProto.FLOAT8E4M3FN: (8, True),
}
_FLOATS = frozenset({onnx.TensorProto.FLOAT8E4M3FN})
_QUANTIZE = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FLOAT8_BITS = 8
_SCALE_SUFFIX = "_scale"


def read_encodings(document: Mapping[str, Any], weights: Collection[str]) -> tuple[Encoding, ...]:
    """Return the grids in an AIMET encodings file of version 2.0.0, in the order of the file.

    Args:
        document: the parsed JSON.
        weights: names of the tensors that are weights or biases; the file does not tell.
    """
    return tuple(_read(entry, entry["name"] in weights) for entry in document["encodings"])


def _read(entry: Mapping[str, Any], is_weight: bool) -> Encoding:
    dtype: str = entry["output_dtype"]
    is_float = dtype.startswith("float")
    scales: NDArray[np.floating]
    if "y_scale" in entry:
        scales = np.asarray(entry["y_scale"], np.float64)
    else:  # low-power blocks: integer multiples of one scale a channel
        # In single precision, as runtimes multiply them.
        multiples = np.asarray(entry["per_block_int_scale"], np.float32)
        scales = multiples * np.asarray(entry["per_channel_float_scale"], np.float32)
    scales = np.atleast_1d(scales).astype(np.float64).ravel()
    zero_points = np.atleast_1d(np.asarray(entry.get("y_zero_point", 0), np.int64)).ravel()
    return _encoding(
        entry["name"],
        bits=_FLOAT8_BITS if is_float else int(dtype.removeprefix("u").removeprefix("int")),
        signed=not dtype.startswith("u"),
        scales=scales,
        zero_points=np.broadcast_to(zero_points, scales.shape),
        is_weight=is_weight,
        is_float=is_float,
    )


def read_grids(model: onnx.ModelProto) -> dict[str, Encoding]:
    """Return the grid of every tensor that a QDQ graph quantizes, by the tensor's name.

    They are called as `quantized_tensor` calls them.
    """
    known = constants(model.graph)
    writers = producers(model.graph)
    # Scales of low-power blocks are quantized themselves.
    scales_of_others = {node.input[1] for node in model.graph.node if node.op_type in _QUANTIZE}
    found: dict[str, Encoding] = {}
    for node in model.graph.node:
        if node.output[0] in scales_of_others:
            continue
        stored = node.op_type == "DequantizeLinear" and node.input[0] in known
        if node.op_type != "QuantizeLinear" and not stored:
            continue
        tensor = quantized_tensor(node)
        dtype = _stored_type(node, known)
        bits, signed = _TYPES[dtype]
        scales = np.atleast_1d(_values(node.input[1], known, writers)).astype(np.float64).ravel()
        found[tensor] = _encoding(
            tensor,
            bits=bits,
            signed=signed,
            scales=scales,
            zero_points=np.broadcast_to(_zero_points(node, known), scales.shape),
            is_weight=stored,
            is_float=dtype in _FLOATS,
        )
    return found


def quantized_tensor(node: onnx.NodeProto) -> str:
    """Return what a quantize or dequantize node is for.

    AIMET calls the scale of tensor ``t`` ``t_scale``; a scale with another name gives the tensor
    the name of what is quantized.
    """
    scale = node.input[1]
    return scale.removesuffix(_SCALE_SUFFIX) if scale.endswith(_SCALE_SUFFIX) else node.input[0]


def grid_differences(grids: Mapping[str, Encoding], encodings: Iterable[Encoding]) -> list[str]:
    """Return what differs between the grids of a graph and the encodings, one line a tensor.

    Scales are compared as the graph stores them, in single precision. Encodings that the graph
    does not use are no difference, nor are weights stored as UINT8 with their zero point in the
    middle: the grid of signed ones.
    """
    expected = {encoding.tensor: encoding for encoding in encodings}
    lines = []
    for name, grid in grids.items():
        other = expected.get(name)
        if other is not None and grid.is_weight:
            grid, other = _signed(grid), _signed(other)
        if other is None:
            lines.append(f"{name}: in the graph, not in the encodings")
        elif _dtype(grid) != _dtype(other):
            lines.append(f"{name}: {_dtype(grid)} in the graph, {_dtype(other)} in the encodings")
        elif not np.array_equal(_single(grid.scales), _single(other.scales)):
            lines.append(f"{name}: scales {grid.scales[:3]} and {other.scales[:3]}")
        elif grid.offsets != other.offsets:
            lines.append(f"{name}: offsets {grid.offsets[:3]} and {other.offsets[:3]}")
    return lines


def _signed(grid: Encoding) -> Encoding:
    """Return the grid of signed integers that is the same, if there is one."""
    middle = 2 ** (grid.bits - 1)
    if grid.signed or grid.is_float or set(grid.offsets) != {-middle}:
        return grid
    return replace(grid, signed=True, offsets=(0,) * len(grid.offsets))


def _encoding(
    tensor: str,
    *,
    bits: int,
    signed: bool,
    scales: NDArray[np.float64],
    zero_points: NDArray[np.int64],
    is_weight: bool,
    is_float: bool,
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
        is_float=is_float,
    )


def _stored_type(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> int:
    """Return what a quantize or dequantize node stores, which its zero point tells."""
    if len(node.input) > 2 and node.input[2]:
        return known[node.input[2]].data_type
    if node.op_type == "DequantizeLinear":
        return known[node.input[0]].data_type
    for attribute in node.attribute:
        if attribute.name == "output_dtype" and attribute.i:
            return int(attribute.i)
    return onnx.TensorProto.UINT8


def _values(
    name: str, known: Mapping[str, onnx.TensorProto], writers: Mapping[str, onnx.NodeProto]
) -> NDArray[Any]:
    """Return a constant, or what a node makes of constants: scales of low-power blocks are stored
    as integers."""
    if name in known:
        return array(known[name])
    node = writers[name]
    inputs = {source: array(known[source]) for source in node.input}
    found: Any = ReferenceEvaluator(node).run(None, inputs)
    return np.asarray(found[0])


def _zero_points(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> NDArray[np.int64]:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(1, np.int64)
    return np.atleast_1d(array(known[node.input[2]])).astype(np.int64).ravel()


def _single(scales: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(scales, np.float32)


def _dtype(encoding: Encoding) -> str:
    kind = "float" if encoding.is_float else "int"
    return f"{'' if encoding.signed else 'u'}{kind}{encoding.bits}"
