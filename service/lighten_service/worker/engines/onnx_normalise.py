"""Bringing an ONNX graph into the form that AIMET reads well. The function stays the same.

What AIMET passes over otherwise, mostly in silence: a Conv without the optional ``group``, nodes
without names, weights behind Identity or in Constant nodes, biases that layers share, weights
that are stored as lists instead of bytes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import onnx
from onnx import inliner, numpy_helper

from lighten_service.worker.engines.onnx_rewrites import rewrite
from lighten_service.worker.graphs.clean import remove_unused
from lighten_service.worker.graphs.shapes import tensor_types
from lighten_service.worker.graphs.walk import constant_value, graphs

# Initializers need not be inputs from this version on.
_MIN_IR_VERSION = 8
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_LAYERS = _CONVOLUTIONS | {"Gemm", "MatMul", "BatchNormalization"}


def normalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the form that AIMET reads well. The argument may be changed."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    _drop_initializers_from_inputs(model)
    _constants_to_initializers(model.graph)
    _bypass(model.graph, lambda node: node.op_type == "Identity")
    _bypass(model.graph, lambda node: node.op_type == "Dropout" and len(node.output) == 1)
    rewrite(model.graph)
    _separate_parameters(model.graph)
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for node in model.graph.node:
        _complete_attributes(node)
    _name_nodes(model)
    remove_unused(model)
    _record_types(model)
    return model


def _drop_initializers_from_inputs(model: onnx.ModelProto) -> None:
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in stored]:
        model.graph.input.remove(value)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    for node in list(graph.node):
        value = constant_value(node)
        if value is None:
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.node.remove(node)


def _bypass(graph: onnx.GraphProto, applies: Callable[[onnx.NodeProto], bool]) -> None:
    """Let the readers of a node that changes nothing read its input, and remove it."""
    kept = {value.name for value in graph.output}
    source: dict[str, str] = {}
    for node in list(graph.node):
        _optional_outputs(node)
        if applies(node) and node.output[0] not in kept:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
            graph.node.remove(node)
    for current in graphs(graph):
        for node in current.node:
            for position, name in enumerate(node.input):
                node.input[position] = source.get(name, name)
        for value in current.output:
            value.name = source.get(value.name, value.name)


def _optional_outputs(node: onnx.NodeProto) -> None:
    while node.output and not node.output[-1]:
        node.output.pop()


def _separate_parameters(graph: onnx.GraphProto) -> None:
    """Give each layer its own bias, and its own weight where other kinds of layers read it too.

    AIMET computes one scale a bias from one layer, and refuses weights with unlike readers.
    Weights that equal layers share stay shared: the file does not grow.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    names = set(stored) | {name for node in graph.node for name in node.output}
    for name, uses in _uses(graph, stored).items():
        kinds = {node.op_type for node, _ in uses}
        is_weight = any(n.op_type in _CONVOLUTIONS | {"Gemm", "MatMul"} for n, _ in uses)
        is_vector = len(stored[name].dims) == 1 and any(p > 0 for _, p in uses)
        mixed = len(kinds) > 1 and is_weight
        if len(uses) < 2 or not (mixed or (is_vector and kinds & _LAYERS)):
            continue
        for node, position in uses[1:]:
            copy = graph.initializer.add()
            copy.CopyFrom(stored[name])
            copy.name = _free_name(name, names)
            node.input[position] = copy.name


def _uses(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto]
) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in stored:
                found[name].append((node, position))
    return found


def _free_name(name: str, taken: set[str]) -> str:
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    taken.add(f"{name}_{number}")
    return f"{name}_{number}"


def _complete_attributes(node: onnx.NodeProto) -> None:
    present = {attribute.name for attribute in node.attribute}
    if node.op_type in _CONVOLUTIONS and "group" not in present:
        node.attribute.append(onnx.helper.make_attribute("group", 1))
    if node.op_type == "BatchNormalization" and "epsilon" not in present:
        node.attribute.append(onnx.helper.make_attribute("epsilon", 1e-5))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own; those that have one keep it."""
    taken: set[str] = set()
    for node in _nodes(model):
        base = node.name or f"{node.op_type}_{node.output[0] if node.output else ''}"
        if base in taken:
            base = _free_name(base, taken)
        node.name = base
        taken.add(base)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs(model.graph):
        yield from graph.node


def _record_types(model: onnx.ModelProto) -> None:
    """Note the inferred types and shapes, batch left open, of what the nodes write."""
    written = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    model.graph.ClearField("value_info")
    model.graph.value_info.extend(
        value for value in tensor_types(model) if value.name in written - outputs
    )
