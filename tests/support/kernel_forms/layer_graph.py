"""The part of a graph that makes up one form."""

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from tests.support.kernel_forms.scales import DATA_SCALE, OUTPUT_SCALE
from tests.support.onnx_models import tensor

if TYPE_CHECKING:
    from tests.support.kernel_forms.form import Form, Integers


class LayerGraph:
    """Nodes and constants of one form, whose name all of theirs begin with: ``NAME.x`` is the data,
    ``NAME.weight`` the weight, and the one output is that of the last node.
    """

    def __init__(self, form: "Form") -> None:
        self._form = form
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []

    def name(self, part: str) -> str:
        return f"{self._form.name}.{part}"

    def node(self, op: str, inputs: list[str], *parts: str, **attributes: object) -> list[str]:
        """Return the names of its outputs, of which there is one for each part."""
        outputs = [self.name(part) for part in parts]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def constant(self, part: str, values: object) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), self.name(part)))
        return self.name(part)

    def numbers(self, part: str, shape: tuple[int, ...]) -> str:
        """Add an input of floats."""
        self.inputs.append(tensor(self.name(part), list(shape)))
        return self.name(part)

    def data(self, part: str, shape: tuple[int, ...], zero_point: int) -> str:
        """Add an input behind QuantizeLinear and DequantizeLinear; ``zero_point``: of unsigned
        codes."""
        shift, kind = (128, np.int8) if self._form.grid.signed_data else (0, np.uint8)
        grid = [
            self.constant(f"{part}_scale", np.float32(DATA_SCALE)),
            self.constant(f"{part}_zero", np.asarray(zero_point - shift, kind)),
        ]
        codes = self.node("QuantizeLinear", [self.numbers(part, shape), *grid], f"{part}_codes")
        return self.node("DequantizeLinear", [*codes, *grid], f"{part}_values")[0]

    def dynamic_data(self, shape: tuple[int, ...]) -> list[str]:
        """Add an input that DynamicQuantizeLinear reads; return codes, scale and zero point."""
        return self.node("DynamicQuantizeLinear", [self.numbers("x", shape)], "codes", "s", "zero")

    def weight_codes(self, weight: "Integers") -> list[str]:
        """Return the names of a weight's stored integers, scale and zero point."""
        shift, kind = (128, np.uint8) if self._form.grid.unsigned_weight else (0, np.int8)
        scale = self._form.weight_scale
        return [
            self.constant("weight", (weight.astype(np.int16) + shift).astype(kind)),
            self.constant("weight_scale", scale),
            self.constant("weight_zero", np.full(scale.shape, shift, kind)),
        ]

    def weight(self, weight: "Integers", axis: int) -> str:
        """Add the weight; ``axis`` is that of its channels."""
        options = {"axis": axis} if self._form.grid.per_channel else {}
        return self.node("DequantizeLinear", self.weight_codes(weight), "values", **options)[0]

    def bias(self) -> list[str]:
        """Add the bias where the form has one."""
        if self._form.bias is None:
            return []
        scale = np.float32(DATA_SCALE) * self._form.weight_scale
        options = {"axis": 0} if scale.ndim else {}
        stored = [self.constant("bias", self._form.bias), self.constant("bias_scale", scale)]
        return self.node("DequantizeLinear", stored, "bias_values", **options)

    def result(self, op: str, inputs: list[str], rank: int, **attributes: object) -> None:
        """Add the operator, and activation and QuantizeLinear where the form has them."""
        found, kind = self.node(op, inputs, "sums", **attributes), TensorProto.FLOAT
        slope, grid = self._form.slope, self._form.grid
        if slope == 0:
            found = self.node("Relu", found, "relu")
        elif slope != 1:
            found = self.node("LeakyRelu", found, "leaky", alpha=float(slope))
        if grid.quantized_output:
            scale = self.constant("y_scale", np.float32(OUTPUT_SCALE))
            zero = self.constant("y_zero", np.uint8(grid.output_zero))
            found, kind = self.node("QuantizeLinear", [*found, scale, zero], "y"), TensorProto.UINT8
        self._output(found, rank, kind)

    def integer_result(self, op: str, data: list[str], weight: list[str], rank: int) -> None:
        """Add an operator on integers, and what makes numbers of its sums.

        Args:
            data, weight: names of codes, scale and zero point.
        """
        sums = self.node(op, [data[0], weight[0], data[2], weight[2]], "sums")
        floats = self.node("Cast", sums, "floats", to=TensorProto.FLOAT)
        scale = self.node("Mul", [data[1], weight[1]], "scale")
        self._output(self.node("Mul", [*floats, *scale], "y"), rank, TensorProto.FLOAT)

    def _output(self, names: list[str], rank: int, kind: int) -> None:
        self.outputs += [tensor(name, [None] * rank, kind) for name in names]
