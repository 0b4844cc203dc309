"""ONNX Runtime's INT8 files made pair-safe: what a tool could do that rounds the same float weights
to the same kind of grid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from lighten_service.worker.graphs.walk import attribute, consumers, producers
from lighten_service.worker.integers.bounds import bounded_scale
from lighten_service.worker.integers.pairs import INTEGER_LIMIT, Order, operand_order

_QUANTIZED = "_quantized"


@dataclass(frozen=True, slots=True)
class _Weight:
    """``layout``: the shape of its scales that broadcasts over the weight."""

    dequantize: onnx.NodeProto
    readers: list[onnx.NodeProto]
    orders: tuple[Order, ...]
    layout: tuple[int, ...]


def write_pair_safe(plain: Path, prepared: Path, target: Path) -> None:
    """Write a file of ``quantize_static`` with the smallest scales, none below its own, at which
    the rounded weights obey the bound of pairs.

    Args:
        plain: INT8 weights, each with one DequantizeLinear and a zero point of 0.
        prepared: the float model that it was made from.
    """
    model = onnx.load(plain)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {tensor.name: tensor for tensor in onnx.load(prepared).graph.initializer}
    makers = producers(model.graph)
    for weight in _weights(model, stored):
        name, scale_name = weight.dequantize.input[:2]
        values = numpy_helper.to_array(floats[name.removesuffix(_QUANTIZED)])
        before = numpy_helper.to_array(stored[scale_name])
        scale = _scale(values, before, weight)
        integers = np.round(values / scale.reshape(weight.layout))
        _set(stored[name], integers.clip(-INTEGER_LIMIT, INTEGER_LIMIT).astype(np.int8))
        _set(stored[scale_name], scale)
        for reader in weight.readers:
            if len(reader.input) > 2 and reader.input[2] in makers:
                _follow(makers[reader.input[2]], scale / before, stored)
    onnx.save(model, target)


def _weights(model: onnx.ModelProto, stored: Mapping[str, TensorProto]) -> Iterator[_Weight]:
    """Yield the weights whose kernels add up pairs."""
    readers = consumers(model.graph)
    for node in model.graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is None or tensor.data_type != TensorProto.INT8:
            continue
        shape = tuple(tensor.dims)
        found = readers[node.output[0]]
        orders = [operand_order(reader, 1, shape) for reader in found]
        if any(order is not None for order in orders):
            layout = [1] * len(shape)
            if stored[node.input[1]].dims:
                axis = int(attribute(node, "axis", 1))  # type: ignore[call-overload]
                layout[axis] = shape[axis]
            yield _Weight(node, found, tuple(order for order in orders if order), tuple(layout))


def _scale(
    values: NDArray[np.float32], before: NDArray[np.float32], weight: _Weight
) -> NDArray[np.float32]:
    found = bounded_scale(
        torch.from_numpy(values.copy()),
        torch.from_numpy(before.reshape(weight.layout).copy()),
        weight.orders,
    )
    return found.numpy().reshape(before.shape)


def _follow(
    dequantize: onnx.NodeProto,
    grown: NDArray[np.float32],
    stored: Mapping[str, TensorProto],
) -> None:
    """Let an INT32 bias, whose scale is the product of those of input and weight, follow."""
    integers, scale = (stored[name] for name in dequantize.input[:2])
    values = np.round(numpy_helper.to_array(integers) / grown.astype(np.float64))
    _set(integers, values.astype(np.int32))
    _set(scale, (numpy_helper.to_array(scale) * grown).astype(np.float32))


def _set(tensor: TensorProto, values: NDArray[np.generic]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
