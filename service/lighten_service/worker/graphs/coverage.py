"""Which tensors of a float graph need a grid, and whether they have one."""

from collections.abc import Collection, Mapping, Set

import onnx

from lighten_service.worker.graphs.walk import producers

# Operators that do nearly all of the work: both operands on a grid, or the product is no integer
# product.
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Their output has the grid of their first input.
GRID_PRESERVING = frozenset(
    {
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "QuantizeLinear",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# AIMET puts no quantizer on a Cast.
_MOVED = GRID_PRESERVING | {"Cast"}


def quantizable_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operands of every Conv, ConvTranspose, Gemm and MatMul, in execution order.

    A tensor that is only moved (reshaped, transposed, pooled by maximum) stands under the name
    that it had first.
    """
    producer = producers(model.graph)
    found = {
        origin(name, producer): None
        for node in model.graph.node
        if node.op_type in HEAVY
        for name in node.input[:2]
    }
    return tuple(found)


def tensors_without_grid(model: onnx.ModelProto, quantized: Set[str]) -> tuple[str, ...]:
    """Return the quantizable tensors that have no grid, neither before nor after being moved.

    Inputs of integers that a Cast turns into floats have no float grid to be on.
    """
    producer = producers(model.graph)
    integers = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
    }
    missing = {
        path[-1]: None
        for node in model.graph.node
        if node.op_type in HEAVY
        for name in node.input[:2]
        if not quantized & set(path := moved_from(name, producer, _MOVED))
        and path[-1] not in integers
    }
    return tuple(missing)


def origin(name: str, producer: Mapping[str, onnx.NodeProto]) -> str:
    """Return the tensor that was only moved to become ``name``."""
    return moved_from(name, producer)[-1]


def moved_from(
    name: str, producer: Mapping[str, onnx.NodeProto], moving: Collection[str] = GRID_PRESERVING
) -> list[str]:
    """Return a tensor and what it was made from by moving alone, nearest first."""
    path = [name]
    while (node := producer.get(path[-1])) is not None and node.op_type in moving:
        path.append(node.input[0])
    return path
