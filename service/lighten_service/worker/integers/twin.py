"""The twin of a file: the same grids, with weights stored as unsigned integers.

Each integer plus 128, with a zero point that is 128 higher, stands for the same number. Kernels for
unsigned weights are exact on every CPU.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from lighten_service.worker.graphs.walk import consumers, graphs, producers
from lighten_service.worker.integers.scopes import Scope
from lighten_service.worker.integers.weights import Weight, find_weights

_MIDDLE: Final = 128
# Places of scales, whose shape zero points have; operators without one have one zero point.
_SCALES: Final[Mapping[str, int]] = {
    "DequantizeLinear": 1,
    "DynamicQuantizeMatMul": 2,
    "MatMulIntegerToFloat": 3,
    "QGemm": 4,
    "QLinearConv": 4,
    "QLinearMatMul": 4,
}
# The first version of ONNX's format in which constants need not be inputs as well.
_IR_VERSION: Final = 4


def unsigned_twin(
    model: onnx.ModelProto, tensors: Collection[str] | None = None
) -> onnx.ModelProto:
    """Return a copy in which INT8 weights of convolutions and matrix products are UINT8.

    Left as they are: weights of operators on integers whose data are signed, for which there is no
    kernel or an inexact one, and where all are converted, first operands of products: they compute
    in float, and would not as UINT8. Functions of the model are inlined.

    Args:
        tensors: names of the quantized tensors to convert, as `read_grids` has them; None for all.
    """
    twin = _copy(model)
    weights = [weight for weight in find_weights(twin) if _is_convertible(weight, tensors)]
    constants = _Constants(twin)
    for weight in weights:
        constants.convert(weight)
    for graph in graphs(twin.graph):
        _drop_unread(graph, constants.replaced)
    return twin


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    if model.functions:
        return inline_local_functions(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    return copy


def _is_convertible(weight: Weight, tensors: Collection[str] | None) -> bool:
    if not weight.signed or weight.bits != 8:
        return False
    if tensors is not None and weight.tensor not in tensors:
        return False
    second = any(use.position == 1 for use in weight.uses)
    if (product := weight.product) is None:
        return second or tensors is not None
    other = product.right if weight.slots == product.left.slots else product.left
    return second and other.signed is False


class _Constants:
    """Adds constants to a model, each once. ``replaced``: names of those they stand for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = set(_names(model))
        self._made: dict[tuple[object, ...], str] = {}
        self.replaced: set[str] = set()

    def convert(self, weight: Weight) -> None:
        """Let one place read unsigned integers, unless its zero point is not known."""
        node, slots, scope = weight.node, weight.slots, weight.scope
        zero_point = _zero_point(weight)
        if zero_point is None:
            return
        stored, zero = weight.stored, _input(node, slots.zero)
        integers = self._add(scope, f"{stored}_uint8", weight.integers)
        middle = self._add(scope, f"{stored}_uint8_zero_point", zero_point, zero, zero_point.shape)
        node.input.extend([""] * (slots.zero + 1 - len(node.input)))
        node.input[slots.integers], node.input[slots.zero] = integers, middle
        self.replaced |= {stored, zero} - {""}

    def _add(self, scope: Scope, name: str, signed: NDArray[Any], *origin: object) -> str:
        """Return the name of a constant with the unsigned integers, or of the one that was made for
        this name and ``origin`` before."""
        key = (id(scope), name, *origin)
        if key not in self._made:
            while name in self._taken:
                name += "_"
            unsigned = (signed.astype(np.int16) + _MIDDLE).astype(np.uint8)
            scope.graph.initializer.append(numpy_helper.from_array(unsigned, name))
            self._taken.add(name)
            self._made[key] = name
        return self._made[key]


def _zero_point(weight: Weight) -> NDArray[Any] | None:
    """Return the zero point of signed integers, as it is stored or would be."""
    given = _input(weight.node, weight.slots.zero)
    if given:
        return weight.scope.values(given)
    place = _SCALES.get(weight.node.op_type)
    if place is None:
        return np.zeros((), np.int8)
    scale = weight.scope.values(weight.node.input[place])
    return None if scale is None else np.zeros(scale.shape, np.int8)


def _input(node: onnx.NodeProto, place: int) -> str:
    return str(node.input[place]) if place < len(node.input) else ""


def _names(model: onnx.ModelProto) -> Iterator[str]:
    for graph in graphs(model.graph):
        for group in (graph.input, graph.initializer):
            yield from (item.name for item in group)
        for node in graph.node:
            yield from node.output


def _drop_unread(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove the constants of these names that nothing reads any more, and what made them."""
    candidates = set(names)
    while unread := candidates - consumers(graph).keys() - {output.name for output in graph.output}:
        writers = producers(graph)
        makers = [writers[name] for name in unread if name in writers]
        candidates = {name for node in makers for name in node.input}
        for node in makers:
            graph.node.remove(node)
        for group in (graph.initializer, graph.input):
            _drop_named(group, unread)


def _drop_named(items: Any, names: Collection[str]) -> None:
    for place in reversed(range(len(items))):
        if items[place].name in names:
            del items[place]
