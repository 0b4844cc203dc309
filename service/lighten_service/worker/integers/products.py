"""Operators that multiply 8-bit integers: what they multiply, and in which order.

Each of them is a product of matrices, left times right. It is the integers on the right that
kernels take in pairs: the weight, save in ConvInteger, whose kernel has the weight on the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx
from numpy.typing import NDArray

from lighten_service.worker.graphs.walk import attribute
from lighten_service.worker.integers.pairs import Order, convolution_order, matrix_order
from lighten_service.worker.integers.scopes import Scope


@dataclass(frozen=True, slots=True)
class Slots:
    """Places of an operator's inputs: integers, and their zero point."""

    integers: int
    zero: int


# Left and right; None for floats that the operator quantizes itself, to UINT8.
OPERANDS: Final[Mapping[str, tuple[Slots | None, Slots]]] = {
    "ConvInteger": (Slots(1, 3), Slots(0, 2)),
    "DynamicQuantizeMatMul": (None, Slots(1, 3)),
    "MatMulInteger": (Slots(0, 2), Slots(1, 3)),
    "MatMulIntegerToFloat": (Slots(0, 4), Slots(1, 5)),
    "QGemm": (Slots(0, 2), Slots(3, 5)),
    "QLinearConv": (Slots(0, 2), Slots(3, 5)),
    "QLinearMatMul": (Slots(0, 2), Slots(3, 5)),
}
_SIGNED: Final[Mapping[int, bool]] = {
    onnx.TensorProto.INT8: True,
    onnx.TensorProto.UINT8: False,
}


@dataclass(frozen=True, slots=True)
class Operand:
    """What stands on one side. ``signed``: None where the type is not known; ``values``: where
    they are known without running."""

    name: str
    slots: Slots | None
    signed: bool | None
    values: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class IntegerProduct:
    """An operator that multiplies 8-bit integers."""

    node: onnx.NodeProto
    left: Operand
    right: Operand

    @property
    def pairs(self) -> bool:
        """Whether kernels of x86 CPUs without VNNI add up pairs of the right side in 16 bits: it
        is signed and the left side is not, or may not be."""
        return self.left.signed is not True and self.right.signed is not False

    def order(self, shape: Sequence[int]) -> Order | None:
        """Return the order of a right side of this shape; None where its kernel adds no pairs."""
        if self.node.op_type == "QLinearConv":
            return convolution_order(shape, int(attribute(self.node, "group", 1)))  # type: ignore[call-overload]
        if len(shape) == 1:
            return matrix_order(shape, k_axis=0)
        return matrix_order(shape, k_axis=len(shape) - (1 if self._transposed else 2))

    def channels(self, shape: Sequence[int]) -> int:
        """Return how many outputs a right side of this shape has; its rows are these, once or
        several times."""
        if self.node.op_type == "QLinearConv" or self._transposed:
            return shape[0]
        return shape[-1] if len(shape) > 1 else 1

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "QGemm" and bool(attribute(self.node, "transB", 0))


def integer_product(node: onnx.NodeProto, scope: Scope) -> IntegerProduct | None:
    """Return what an operator multiplies; None for those that multiply no 8-bit integers."""
    if node.op_type not in OPERANDS:
        return None
    left, right = (_operand(node, slots, scope) for slots in OPERANDS[node.op_type])
    return IntegerProduct(node, left, right)


def _operand(node: onnx.NodeProto, slots: Slots | None, scope: Scope) -> Operand:
    if slots is None:
        return Operand("", None, signed=False)
    name = node.input[slots.integers]
    values = scope.values(name)
    found = scope.element_type(name)
    if not found and len(node.input) > slots.zero and node.input[slots.zero]:
        found = scope.element_type(node.input[slots.zero])
    if not found and values is not None:
        found = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return Operand(name, slots, _SIGNED.get(found), values)
