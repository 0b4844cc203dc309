"""Small quantized graphs, put together by hand: weights are integers that the caller chooses."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.support.onnx_models import Builder, tensor

MICROSOFT = "com.microsoft"
# Opset of blockwise grids and of 4 bits.
OPSET = 21


class QuantizedBuilder(Builder):
    """Collects inputs, outputs and QuantizeLinear and DequantizeLinear as well."""

    def __init__(self) -> None:
        super().__init__(OPSET)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def data(self, name: str, *shape: int, dtype: type[Any] = np.uint8) -> str:
        """Add an input, quantized; return the name of its values."""
        self.inputs.append(tensor(name, list(shape)))
        return self.quantized(name, name, dtype)

    def quantized(self, source: str, name: str, dtype: type[Any] = np.uint8) -> str:
        """Quantize a tensor in steps of one, around the middle; return the name of its values."""
        middle = dtype(128 if dtype is np.uint8 else 0)
        grid = [
            self.constant(f"{name}_scale", np.float32(1)),
            self.constant(f"{name}_zero_point", middle),
        ]
        codes = self.add("QuantizeLinear", [source, *grid], f"{name}.codes")
        return self.add("DequantizeLinear", [codes, *grid], f"{name}.values")

    def integers(
        self,
        name: str,
        integers: NDArray[Any],
        *,
        axis: int | None = None,
        zero_point: int | None = 0,
        **attributes: object,
    ) -> str:
        """Add a weight with a scale for each index of an axis, or with one; return the name of its
        values."""
        shape = () if axis is None else (integers.shape[axis],)
        stored = [
            self.constant(name, integers),
            self.constant(f"{name}_scale", np.full(shape, 2.0**-6, np.float32)),
        ]
        if zero_point is not None:
            zero = np.full(shape, zero_point, integers.dtype)
            stored.append(self.constant(f"{name}_zero_point", zero))
        if axis is not None:
            attributes["axis"] = axis
        return self.add("DequantizeLinear", stored, f"{name}.values", **attributes)

    def contrib(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Add an operator of ONNX Runtime's own."""
        node = helper.make_node(op, inputs, [output], output, domain=MICROSOFT, **attributes)
        self.nodes.append(node)
        return output

    def result(self, name: str, kind: int = TensorProto.FLOAT) -> None:
        """Make a tensor an output."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def build(self, functions: list[onnx.FunctionProto] | None = None) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.initializers)
        for node in graph.node:
            node.name = node.name or node.output[0]
        domains = [MICROSOFT, *{function.domain for function in functions or ()}]
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(d, 1) for d in domains),
        ]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=10, functions=functions or []
        )


def product(integers: NDArray[Any], op: str = "MatMul", **attributes: object) -> onnx.ModelProto:
    """Return quantized data times a weight ``weight``, quantized again, with the operator ``layer``
    between."""
    b = QuantizedBuilder()
    weight = b.integers("weight", integers)
    transposed = attributes.get("transB", 0)
    data = b.data("x", 2, integers.shape[-1 if transposed else -2])
    b.result(b.quantized(b.add(op, [data, weight], "layer", **attributes), "y"))
    return b.build()


def full(*shape: int, seed: int = 0) -> NDArray[np.int8]:
    """Return random integers of the full range, with both of its ends."""
    found = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    found.flat[0], found.flat[-1] = -128, 127
    return found


def within_bound(*shape: int, seed: int = 0) -> NDArray[np.int8]:
    """Return random integers of which no two pass the limit of pairs, in whatever order."""
    return np.random.default_rng(seed).integers(-64, 65, shape).astype(np.int8)
