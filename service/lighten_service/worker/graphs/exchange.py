"""Weights of one QDQ graph put into another that differs from it in weights alone."""

from collections.abc import Collection, Iterator

import onnx

from lighten_service.worker.graphs.qdq import quantized_tensor
from lighten_service.worker.graphs.walk import constants, consumers, producers

_SUFFIX = "_exchanged"


def differing_weights(model: onnx.ModelProto, other: onnx.ModelProto) -> list[str]:
    """Return the tensors whose stored integers or scales differ, in graph order."""
    theirs = {node.output[0]: node for node in other.graph.node}
    known, known_there = constants(model.graph), constants(other.graph)
    return [
        quantized_tensor(node)
        for node in _stored(model.graph)
        if node.output[0] in theirs
        and any(
            known[ours].SerializeToString() != known_there[there].SerializeToString()
            for ours, there in zip(node.input, theirs[node.output[0]].input, strict=True)
        )
        and len(known[node.input[0]].dims) > 1
    ]


def with_weights_of(
    model: onnx.ModelProto, other: onnx.ModelProto, tensors: Collection[str]
) -> onnx.ModelProto:
    """Return a copy of a QDQ graph that stores some weights, and the biases on their grids, as
    another graph does that has the same nodes."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    theirs = {node.output[0]: node for node in other.graph.node}
    known = constants(other.graph)
    readers, writers = consumers(mixed.graph), producers(mixed.graph)
    for node in list(_stored(mixed.graph)):
        if quantized_tensor(node) not in tensors:
            continue
        biases = {name for reader in readers[node.output[0]] for name in reader.input[2:3]}
        for one in (node, *(writers[name] for name in sorted(biases) if name in writers)):
            _replace_inputs(mixed.graph, one, theirs[one.output[0]], known)
    return mixed


def _stored(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    known = constants(graph)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in known:
            yield node


def _replace_inputs(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    theirs: onnx.NodeProto,
    known: dict[str, onnx.TensorProto],
) -> None:
    present = {tensor.name for tensor in graph.initializer}
    del node.input[:]
    for name in theirs.input:
        copied = f"{name}{_SUFFIX}"
        node.input.append(copied)
        if copied not in present:
            tensor = graph.initializer.add()
            tensor.CopyFrom(known[name])
            tensor.name = copied
