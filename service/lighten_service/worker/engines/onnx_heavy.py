"""The layers of an ONNX graph: convolutions and matrix products with a constant weight."""

from dataclasses import dataclass

import numpy as np
import onnx

from lighten_service.worker.engines.onnx_kernels import kernel_of
from lighten_service.worker.graphs.activations import activation_bounds
from lighten_service.worker.graphs.shapes import tensor_shapes
from lighten_service.worker.graphs.walk import attribute, constants, consumers
from lighten_service.worker.quantized import Layer

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Heavy:
    """A layer, and where the graph has its parts.

    A MatMul and the Add of a constant vector that alone reads it are one layer, as in PyTorch.
    """

    layer: Layer
    # Tensors: what the node itself reads and writes.
    data: str
    product: str
    weight: str
    # Empty for none.
    bias: str
    channels: int
    # Whether the graph stores the weight as (in, out).
    transposed: bool

    @property
    def output(self) -> str:
        return self.layer.output


def heavy_layers(model: onnx.ModelProto) -> tuple[Heavy, ...]:
    """Return the layers of the main graph in execution order.

    Left out are layers that no `Kernel` describes, and those whose bias is computed, has another
    shape than (channels,), or is read elsewhere too.
    """
    graph = _Graph(model)
    found = (graph.heavy(node) for node in model.graph.node if node.op_type in HEAVY)
    return tuple(heavy for heavy in found if heavy is not None)


def give_biases(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give each layer without a bias one of zeros, in place; return the names of the biases.

    A MatMul gets an Add behind it; the sum is called what the product was.
    """
    names = []
    taken = {t.name for t in model.graph.initializer}
    taken |= {name for node in model.graph.node for name in node.output}
    for heavy in heavy_layers(model):
        if heavy.bias:
            continue
        name = f"{heavy.product}.bias"
        while name in taken:
            name += "_"
        taken.add(name)
        zeros = np.zeros(heavy.channels, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
        _append_bias(model.graph, heavy.product, name)
        names.append(name)
    return tuple(names)


def _append_bias(graph: onnx.GraphProto, product: str, name: str) -> None:
    position = next(i for i, node in enumerate(graph.node) if product in node.output)
    node = graph.node[position]
    if node.op_type != "MatMul":
        del node.input[2:]
        node.input.append(name)
        return
    node.output[0] = f"{name}.product"
    total = onnx.helper.make_node("Add", [node.output[0], name], [product], f"{name}.add")
    graph.node.insert(position + 1, total)


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.dims[1] * attribute(node, "group", 1))  # type: ignore[operator]
    return int(weight.dims[1 if _stored_transposed(node) else 0])


def _stored_transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))


class _Graph:
    """What has to be looked up while layers are found."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._known = constants(model.graph)
        self._readers = consumers(model.graph)
        self._outputs = {value.name for value in model.graph.output}
        self._shapes = tensor_shapes(model)

    def heavy(self, node: onnx.NodeProto) -> Heavy | None:
        weight = self._known.get(node.input[1])
        if weight is None or node.input[0] in self._known:
            return None
        if weight.data_type != onnx.TensorProto.FLOAT:
            return None
        kernel = kernel_of(node, weight.dims, self._shapes)
        if kernel is None:
            return None
        output, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
        channels = _channels(node, weight)
        if node.op_type == "MatMul":
            output, bias = self._added(node, channels)
        if bias and not self._is_vector(bias, channels):
            return None
        transposed = _stored_transposed(node)
        dims = tuple(weight.dims)
        layer = Layer(
            name=node.name,
            op=node.op_type,
            kernel=kernel,
            weight=weight.name,
            output=output,
            weight_shape=dims[::-1] if transposed else dims,
            activation=self._activation(output),
        )
        return Heavy(layer, node.input[0], node.output[0], weight.name, bias, channels, transposed)

    def _added(self, node: onnx.NodeProto, channels: int) -> tuple[str, str]:
        """Return the output and the bias of a MatMul with the Add after it, if there is one."""
        after = self._only_reader(node.output[0])
        if after is not None and after.op_type == "Add":
            for name in after.input:
                if name in self._known and self._is_vector(name, channels):
                    return after.output[0], name
        return node.output[0], ""

    def _is_vector(self, name: str, channels: int) -> bool:
        known = self._known.get(name)
        if known is None or list(known.dims) != [channels]:
            return False
        return len(self._readers[name]) == 1

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._readers[name]
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _activation(self, output: str) -> tuple[float, float] | None:
        reader = self._only_reader(output)
        return None if reader is None else activation_bounds(reader, self._known)
