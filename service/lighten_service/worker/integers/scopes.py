"""Names in a graph and its subgraphs: what is known without running, who writes and who reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from lighten_service.worker.graphs.walk import (
    array,
    constants,
    consumers,
    opset,
    producers,
    subgraphs,
)

# Operators that runtimes compute ahead where all of their inputs are known.
_FOLDED: Final = frozenset(
    {
        "DequantizeLinear",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
# Operators that write the type that their zero point has, and its place.
_ZERO_POINTS: Final[Mapping[str, int]] = {
    "QGemm": 8,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "QuantizeLinear": 2,
}
# Operators that write the type of their first input.
_KEPT: Final = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True, slots=True)
class Scope:
    """One graph. ``known`` and ``writers`` hold what is visible from graphs around it as well,
    ``readers`` the nodes of graphs inside it as well."""

    graph: onnx.GraphProto
    opset: int
    known: Mapping[str, onnx.TensorProto]
    types: Mapping[str, int]
    writers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, Sequence[onnx.NodeProto]]

    def values(self, name: str) -> NDArray[Any] | None:
        """Return a constant, or what follows from constants alone; None for others."""
        if name in self.known:
            return array(self.known[name])
        node = self.writers.get(name)
        if node is None or node.domain or node.op_type not in _FOLDED:
            return None
        found = {}
        for source in filter(None, node.input):
            value = self.values(source)
            if value is None:
                return None
            found[source] = value
        outputs: Any = ReferenceEvaluator(node, opsets={"": self.opset}).run(None, found)
        return np.asarray(outputs[0])

    def element_type(self, name: str) -> int:
        """Return the type of a tensor of integers, UNDEFINED where it is not known."""
        if name in self.known:
            return self.known[name].data_type
        node = self.writers.get(name)
        if node is None:
            return self.types.get(name, onnx.TensorProto.UNDEFINED)
        if node.op_type == "DynamicQuantizeLinear":
            return onnx.TensorProto.UINT8
        if node.op_type in _KEPT:
            return self.element_type(node.input[0])
        return self._written_type(node)

    def _written_type(self, node: onnx.NodeProto) -> int:
        place = _ZERO_POINTS.get(node.op_type)
        if place is None:
            return onnx.TensorProto.UNDEFINED
        if len(node.input) > place and node.input[place]:
            return self.element_type(node.input[place])
        if node.op_type != "QuantizeLinear":
            return onnx.TensorProto.UNDEFINED
        named = next((each.i for each in node.attribute if each.name == "output_dtype"), 0)
        return int(named or onnx.TensorProto.UINT8)


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yield the graph, and each below it."""
    yield from _below(model.graph, opset(model), {}, {}, {})


def _below(
    graph: onnx.GraphProto,
    version: int,
    known: Mapping[str, onnx.TensorProto],
    types: Mapping[str, int],
    writers: Mapping[str, onnx.NodeProto],
) -> Iterator[Scope]:
    known = {**known, **constants(graph)}
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types = {**types, **inputs}
    writers = {**writers, **producers(graph)}
    yield Scope(graph, version, known, types, writers, consumers(graph))
    for node in graph.node:
        for below in subgraphs(node):
            yield from _below(below, version, known, types, writers)
