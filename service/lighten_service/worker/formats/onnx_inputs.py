"""Inputs of an ONNX graph, compared with what the spec says about them."""

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument

_FIELD = "model.inputs"
_TYPES: Mapping[int, pb.ElementType.ValueType] = {
    TensorProto.FLOAT: pb.ELEMENT_TYPE_FLOAT32,
    TensorProto.INT32: pb.ELEMENT_TYPE_INT32,
    TensorProto.INT64: pb.ELEMENT_TYPE_INT64,
    TensorProto.BOOL: pb.ELEMENT_TYPE_BOOL,
}


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller feeds: those without a stored value."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def fix_inputs(model: onnx.ModelProto, specs: Sequence[pb.InputSpec]) -> tuple[pb.InputSpec, ...]:
    """Check the spec's inputs against the graph, and close the graph's open dimensions with them.

    Returns the inputs in graph order, shapes without the batch dimension.

    Raises:
        InvalidArgument: for ``model.inputs``. INPUT_MISMATCH, OPEN_DIMENSION, UNSUPPORTED_TYPE,
            UNSUPPORTED_BATCH.
    """
    values = graph_inputs(model)
    if not values:
        raise InvalidArgument("NO_INPUTS", "the graph has no inputs", field="model.artifact")
    given = {spec.name: spec for spec in specs}
    unknown = sorted(set(given) - {value.name for value in values})
    if unknown:
        raise _mismatch(f"the graph has no input {unknown[0]!r}", values)
    fixed = tuple(_fix(value, given.get(value.name), values) for value in values)
    batch_size(model)
    return fixed


def batch_size(model: onnx.ModelProto) -> int | None:
    """Return the batch size that the graph demands, or None where it takes any.

    Raises:
        InvalidArgument: UNSUPPORTED_BATCH.
    """
    sizes = {max(value.type.tensor_type.shape.dim[0].dim_value, 0) for value in graph_inputs(model)}
    if len(sizes) > 1:
        raise InvalidArgument(
            "UNSUPPORTED_BATCH",
            f"the first dimensions of the inputs differ ({sorted(sizes)}, 0 for open ones); "
            "the first dimension of every input must be the batch",
            field="model.artifact",
        )
    return next(iter(sizes)) or None


def _fix(
    value: onnx.ValueInfoProto, spec: pb.InputSpec | None, values: list[onnx.ValueInfoProto]
) -> pb.InputSpec:
    tensor = value.type.tensor_type
    dtype = _TYPES.get(tensor.elem_type)
    if dtype is None:
        raise InvalidArgument(
            "UNSUPPORTED_TYPE",
            f"input {value.name!r} is {TensorProto.DataType.Name(tensor.elem_type).lower()}; "
            "inputs must be float32, int32, int64 or bool",
            field="model.artifact",
        )
    if spec is not None and (spec.dtype or pb.ELEMENT_TYPE_FLOAT32) != dtype:
        raise _mismatch(f"input {value.name!r} has another type", values)
    if spec is not None and not tensor.HasField("shape"):
        tensor.shape.dim.add().dim_param = "batch"
        for size in spec.shape:
            tensor.shape.dim.add().dim_value = size
    if not tensor.shape.dim:
        raise InvalidArgument(
            "UNSUPPORTED_BATCH",
            f"input {value.name!r} has no batch dimension",
            field="model.artifact" if tensor.HasField("shape") else _FIELD,
        )
    dimensions = list(tensor.shape.dim)
    if spec is not None:
        _close(value.name, dimensions[1:], spec.shape, values)
    for axis, dimension in enumerate(dimensions):
        if axis and dimension.dim_value <= 0:
            raise InvalidArgument(
                "OPEN_DIMENSION",
                f"dimension {axis} ({dimension.dim_param or 'unnamed'}) of input {value.name!r} "
                "is open; say its size in model.inputs",
                field=_FIELD,
            )
    if dimensions[0].dim_value <= 0 and not dimensions[0].dim_param:
        dimensions[0].dim_param = "batch"
    return pb.InputSpec(name=value.name, shape=[d.dim_value for d in dimensions[1:]], dtype=dtype)


def _close(
    name: str,
    dimensions: Sequence[onnx.TensorShapeProto.Dimension],
    shape: Sequence[int],
    values: list[onnx.ValueInfoProto],
) -> None:
    fits = len(dimensions) == len(shape) and all(
        size > 0 and dimension.dim_value in (size, 0, -1)
        for dimension, size in zip(dimensions, shape, strict=True)
    )
    if not fits:
        raise _mismatch(f"input {name!r} does not take the shape {list(shape)}", values)
    for dimension, size in zip(dimensions, shape, strict=True):
        dimension.dim_value = size


def _mismatch(problem: str, values: list[onnx.ValueInfoProto]) -> InvalidArgument:
    inputs = ", ".join(_describe(value) for value in values)
    return InvalidArgument(
        "INPUT_MISMATCH",
        f"{problem}; the graph's inputs, without the batch dimension: {inputs}",
        field=_FIELD,
    )


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [d.dim_param or str(d.dim_value or "?") for d in list(tensor.shape.dim)[1:]]
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} [{', '.join(sizes)}]"
