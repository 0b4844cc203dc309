"""Going through a graph: nodes with their subgraphs, constants, consumers."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of one node, not those inside them."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every graph below it."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            pending.extend(subgraphs(node))


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the graph, its subgraphs and the model's functions."""
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        pending = list(function.node)
        while pending:
            node = pending.pop()
            yield node
            for graph in subgraphs(node):
                pending.extend(graph.node)


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors known without running: initializers and Constant nodes with a tensor."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = constant_value(node)
        if value is not None:
            found[node.output[0]] = value
    return found


def constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node; None for other nodes and other kinds of constants."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name == "value_float":
            return numpy_helper.from_array(np.asarray(attribute.f, np.float32))
        if attribute.name == "value_floats":
            return numpy_helper.from_array(np.asarray(attribute.floats, np.float32))
        if attribute.name == "value_int":
            return numpy_helper.from_array(np.asarray(attribute.i, np.int64))
        if attribute.name == "value_ints":
            return numpy_helper.from_array(np.asarray(attribute.ints, np.int64))
    return None


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, once for each use, those in subgraphs included."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for current in graphs(graph):
        for node in current.node:
            for name in node.input:
                if name:
                    found[name].append(node)
    return found


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node of this graph that writes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of an attribute, or ``default``."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the model uses, 0 if it names none."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def array(tensor: onnx.TensorProto) -> NDArray[np.generic]:
    """Return the values of a tensor, whatever way they are stored."""
    values: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return values
