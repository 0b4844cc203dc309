"""Shapes of every tensor of a graph."""

from math import prod

import onnx
from onnx import shape_inference

Shapes = dict[str, tuple[int, ...]]

# Larger constants cannot be shapes, axes or sizes, which inference needs to read.
_READ_BY_INFERENCE = 1024


def tensor_shapes(model: onnx.ModelProto, batch: int = 1) -> Shapes:
    """Return the shapes that can be inferred, open first dimensions of the inputs set to ``batch``.

    Tensors whose shape depends on the data, or on operators unknown to ONNX, are left out.
    """
    light = without_weights(model)
    for value in light.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_value <= 0:
            dimensions[0].dim_value = batch
    # What the file says may still have the batch open.
    light.graph.ClearField("value_info")
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(light, data_prop=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in values:
        shape = _known_shape(value)
        if shape is not None:
            found[value.name] = shape
    return found


def tensor_types(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inferred types of what the nodes write, open dimensions left open."""
    light = without_weights(model)
    light.graph.ClearField("value_info")
    return list(shape_inference.infer_shapes(light, data_prop=True).graph.value_info)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a small copy whose large initializers are inputs: same types, same shapes."""
    light = onnx.ModelProto()
    copy_fields(model, light, "graph")
    copy_fields(model.graph, light.graph, "initializer")
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _READ_BY_INFERENCE:
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in declared:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def copy_fields(source: object, target: object, without: str) -> None:
    """Copy a message except one field, for fields too large to be copied."""
    for descriptor, value in source.ListFields():  # type: ignore[attr-defined]
        if descriptor.name == without:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif descriptor.message_type:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _known_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    if not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
        return None
    return tuple(dimension.dim_value for dimension in tensor.shape.dim)
