"""Parameters, operations and bytes of a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import onnx

from lighten_service.worker.graphs.coverage import GRID_PRESERVING
from lighten_service.worker.graphs.shapes import Shapes, tensor_shapes
from lighten_service.worker.graphs.walk import graphs, producers
from lighten_service.worker.model import Encoding, ModelStatistics

_FLOAT_BITS = 32
# Bits of the stored types that count as parameters.
_BITS: Mapping[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT32: 32,
}
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)
# Inputs that hold no weight: running statistics, sizes, grids.
_NOT_WEIGHTS = {
    "BatchNormalization": (3, 4),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}


def graph_statistics(model: onnx.ModelProto, encodings: Sequence[Encoding] = ()) -> ModelStatistics:
    """Count what one sample costs, float or QDQ.

    Multiply-accumulates are those of Conv, ConvTranspose, Gemm and MatMul; layers whose shapes
    cannot be inferred count as zero. Tensors without an encoding count as 32 bits wide. Running
    statistics of batch norms are no parameters.
    """
    bits = {encoding.tensor: encoding.bits for encoding in encodings}
    weights = dict(_parameters(model))
    shapes = tensor_shapes(model)
    batch = _batch(model)
    width = _widths(model, bits)
    macs = bops = 0
    for node in model.graph.node:
        count = _macs(node, shapes) // batch
        macs += count
        if count:
            bops += count * width(node.input[0]) * width(node.input[1])
    return ModelStatistics(
        parameters=sum(prod(tensor.dims) for tensor in weights.values()),
        macs=macs,
        bops=bops,
        weight_bytes=sum(
            (prod(tensor.dims) * bits.get(name, _BITS[tensor.data_type]) + 7) // 8
            for name, tensor in weights.items()
        ),
    )


def _parameters(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the initializers that are weights or biases, each once."""
    everything = list(graphs(model.graph))
    nodes = [node for graph in everything for node in graph.node]
    read = {
        name
        for node in nodes
        for position, name in enumerate(node.input)
        if position not in _NOT_WEIGHTS.get(node.op_type, ())
    }
    quantized = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    for graph in everything:
        for tensor in graph.initializer:
            integer = tensor.data_type in _BITS and tensor.name in quantized
            counts = tensor.data_type in _FLOATS or integer
            if counts and tensor.dims and tensor.name in read:
                yield tensor.name, tensor


def _batch(model: onnx.ModelProto) -> int:
    """Return the samples of one run: the first dimension of the first input, 1 where it is open."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in weights and dimensions:
            return max(dimensions[0].dim_value, 1)
    return 1


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    count = _MACS.get(node.op_type)
    return count(node, shapes) if count else 0


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    output, weight = shapes.get(node.output[0]), shapes.get(node.input[1])
    return prod(output) * prod(weight[1:]) if output and weight else 0


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    # Each input element meets each weight of its channel.
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
    return prod(data) * prod(weight[1:]) if data and weight else 0


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    output, data = shapes.get(node.output[0]), shapes.get(node.input[0])
    if not output or not data:
        return 0
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(output) * data[0 if transposed else 1]


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    output, data = shapes.get(node.output[0]), shapes.get(node.input[0])
    return prod(output) * data[-1] if output is not None and data else 0


_MACS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _widths(model: onnx.ModelProto, bits: Mapping[str, int]) -> Callable[[str], int]:
    """Return a function that finds the width of a tensor, across operators that keep a grid."""
    producer = producers(model.graph)

    def width(name: str) -> int:
        while name not in bits:
            node = producer.get(name)
            if node is None or node.op_type not in GRID_PRESERVING:
                return _FLOAT_BITS
            name = node.input[0]
        return bits[name]

    return width
