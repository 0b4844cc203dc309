"""Which tensors of a graph have to share one scale a channel, if their channels are scaled.

A layer can write its channels on any scale, and read them on any. What stands between layers has
to compute the same on scaled channels, but for the scale: ReLU does, a sigmoid does not, and a sum
does where both sides have the same scales.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from lighten_service.worker.graphs.activations import activation_bounds
from lighten_service.worker.graphs.shapes import tensor_shapes
from lighten_service.worker.graphs.walk import (
    array,
    attribute,
    constants,
    consumers,
    graphs,
    producers,
    subgraphs,
)
from lighten_service.worker.quantized import Layer


@dataclass
class ChannelSet:
    """Tensors that share one scale a channel, and the layers that write and read them.

    Scaling what ``writers`` write and taking it back in what ``readers`` read leaves the model's
    function as it is, for values up to ``bound``, unless there is an ``obstacle``.
    """

    # Axis that counts channels, not negative.
    axis: int
    channels: int
    tensors: list[str] = field(default_factory=list)
    # Names of layers.
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    # Smallest upper bound of a Clip within; infinity without any. The readers see all values that
    # come near it.
    bound: float = math.inf
    # Why the channels cannot be scaled; empty where they can.
    obstacle: str = ""


def channel_sets(model: onnx.ModelProto, layers: Iterable[Layer]) -> tuple[ChannelSet, ...]:
    """Return the sets of the main graph in execution order, every layer's output in one of them.

    Args:
        model: float graph in execution order.
        layers: those whose weights can be changed.
    """
    return _Search(model, layers).run()


class _Search:
    def __init__(self, model: onnx.ModelProto, layers: Iterable[Layer]) -> None:
        self._graph = model.graph
        self._readers = consumers(model.graph)
        self._layers = _by_product(model.graph, layers)
        self._sets: dict[str, ChannelSet] = {}
        # Outputs of Clips with an upper bound.
        self.bounded: list[str] = []
        self.shapes = tensor_shapes(model)
        self.constants = constants(model.graph)

    def run(self) -> tuple[ChannelSet, ...]:
        for node in self._graph.node:
            layer = self._layers.get(node.output[0])
            if layer is not None:
                self._pass_layer(node, layer)
            elif node.output[0] in self._sets:
                continue  # the bias of a matrix product
            elif node.op_type in _RULES:
                self._pass_through(node)
            else:
                self._stop(_reads(node), f"{node.op_type} cannot be scaled")
        for output in self._graph.output:
            self._stop([output.name], "it is an output of the model")
        hidden = set(self.bounded) - self._seen()
        self._stop(hidden, "no layer reads what a Clip bounds before it is averaged or added")
        return tuple({id(found): found for found in self._sets.values()}.values())

    def _seen(self) -> set[str]:
        """Return the tensors whose largest value in each channel a layer reads."""
        read = {node.input[0] for node in self._graph.node if node.output[0] in self._layers}
        for node in reversed(self._graph.node):
            if node.op_type in _KEEPING and node.output[0] in read:
                read.add(node.input[0])
        return read

    def _pass_layer(self, node: onnx.NodeProto, layer: Layer) -> None:
        data, weight = node.input[:2]
        axis = 1 if layer.kernel.spatial else len(self.shapes.get(data, ())) - 1
        written = ChannelSet(axis, layer.output_channels, [layer.output], [layer.name])
        self._sets[layer.output] = written
        if axis < 1:
            self._stop([layer.output], f"the shape of {data} is not known")
        read = self._sets.get(data)
        if read is not None:
            read.readers.append(layer.name)
            if (axis, layer.input_channels) != (read.axis, read.channels):
                self._stop([data], f"{layer.name} reads it along another axis")
        if len(self._readers[weight]) > 1:
            self._stop([data, layer.output], f"{layer.name} shares its weight")

    def _pass_through(self, node: onnx.NodeProto) -> None:
        names = list(node.input if node.op_type in _SUMS else node.input[:1])
        found = [self._sets[name] for name in names if name in self._sets]
        if not found:
            return
        if len(found) < len(names):
            obstacle = f"{node.op_type} reads what no layer writes"
        else:
            obstacle = _RULES[node.op_type](self, node, found)
        if obstacle:
            self._stop(names, obstacle)
            return
        merged = self._merge(found)
        merged.tensors.append(node.output[0])
        self._sets[node.output[0]] = merged

    def _merge(self, sets: list[ChannelSet]) -> ChannelSet:
        first, *others = sets
        for other in others:
            if other is first:
                continue
            first.tensors += other.tensors
            first.writers += other.writers
            first.readers += other.readers
            first.bound = min(first.bound, other.bound)
            first.obstacle = first.obstacle or other.obstacle
            self._sets |= dict.fromkeys(other.tensors, first)
        return first

    def _stop(self, names: Iterable[str], obstacle: str) -> None:
        for name in names:
            found = self._sets.get(name)
            if found is not None:
                found.obstacle = found.obstacle or obstacle


def _by_product(graph: onnx.GraphProto, layers: Iterable[Layer]) -> dict[str, Layer]:
    """Return the layers by what their node writes, which is not their output where an Add behind a
    matrix product has the bias."""
    writer, known, found = producers(graph), constants(graph), {}
    for layer in layers:
        node = writer.get(layer.output)
        if node is not None and node.op_type == "Add":
            node = next((writer[n] for n in node.input if n in writer and n not in known), None)
        if node is not None:
            found[node.output[0]] = layer
    return found


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what the node reads, its subgraphs included."""
    yield from node.input
    for subgraph in subgraphs(node):
        for current in graphs(subgraph):
            for inner in current.node:
                yield from inner.input


# Says why the node cannot pass on scaled channels of the sets that it reads; empty where it can.
_Rule = Callable[[_Search, onnx.NodeProto, list[ChannelSet]], str]


def _always(_: _Search, __: onnx.NodeProto, ___: list[ChannelSet]) -> str:
    return ""


def _clip(search: _Search, node: onnx.NodeProto, read: list[ChannelSet]) -> str:
    bounds = activation_bounds(node, search.constants)
    if bounds is None or bounds[0] not in (0, -math.inf) or bounds[1] <= 0:
        return "a Clip has other bounds than 0 and a constant above"
    read[0].bound = min(read[0].bound, bounds[1])
    if math.isfinite(bounds[1]):
        search.bounded.append(node.output[0])
    return ""


def _sum(search: _Search, node: onnx.NodeProto, read: list[ChannelSet]) -> str:
    ranks = {len(search.shapes.get(name, ())) for name in node.input}
    alike = len({(one.axis, one.channels) for one in read}) == 1 and len(ranks) == 1
    return "" if alike else f"{node.op_type} reads tensors of different shapes"


def _pool(_: _Search, node: onnx.NodeProto, read: list[ChannelSet]) -> str:
    return "" if read[0].axis == 1 else f"{node.op_type} mixes the channels"


def _reduce_mean(search: _Search, node: onnx.NodeProto, read: list[ChannelSet]) -> str:
    axes: Any = attribute(node, "axes")
    if len(node.input) > 1 and node.input[1] in search.constants:
        axes = array(search.constants[node.input[1]]).reshape(-1)
    rank = len(search.shapes.get(node.input[0], ()))
    positions = axes is not None and rank > 2 and all(int(axis) % rank > 1 for axis in axes)
    return _pool(search, node, read) if positions else f"{node.op_type} is not over positions"


def _reshape(search: _Search, node: onnx.NodeProto, read: list[ChannelSet]) -> str:
    """Let pass what has one position, so that channels stay what they are."""
    shape = search.shapes.get(node.output[0], ())
    kept = len(shape) > 1 and shape[1] == math.prod(shape[1:]) == read[0].channels
    return _pool(search, node, read) if kept else f"{node.op_type} mixes channels and positions"


_SUMS = frozenset({"Add", "Sum"})
# Largest values stay, or are cut off by a bound that counts too.
_KEEPING = frozenset(
    {
        "Clip",
        "Dropout",
        "Flatten",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "Relu",
        "Reshape",
        "Squeeze",
    }
)
_RULES: Mapping[str, _Rule] = {
    "Add": _sum,
    "AveragePool": _pool,
    "Clip": _clip,
    "Dropout": _always,
    "Flatten": _reshape,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Identity": _always,
    "LeakyRelu": _always,
    "MaxPool": _pool,
    "ReduceMean": _reduce_mean,
    "Relu": _always,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Sum": _sum,
}
