"""Weights stored in few bits, as the graph of a file has them: their integers and their readers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from lighten_service.worker.graphs.coverage import HEAVY
from lighten_service.worker.graphs.qdq import quantized_tensor
from lighten_service.worker.graphs.walk import attribute
from lighten_service.worker.integers.pairs import Order, moved_shape, operand_order, through
from lighten_service.worker.integers.products import IntegerProduct, Slots, integer_product
from lighten_service.worker.integers.scopes import Scope, scopes

_BITS: Final = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
_DEQUANTIZE: Final = Slots(0, 2)


@dataclass(frozen=True, slots=True)
class Use:
    """One operator that multiplies a weight.

    ``position``: 1 where operators have their weight, 0 where they have their data. ``order``: None
    where kernels add no pairs of it, or are float.
    """

    node: onnx.NodeProto
    position: int
    order: Order | None


@dataclass(frozen=True, slots=True)
class Weight:
    """One place where stored integers enter: a DequantizeLinear, or a product of integers.

    ``tensor`` is what `read_grids` calls it, ``integers`` are as that place reads them.
    """

    tensor: str
    scope: Scope
    node: onnx.NodeProto
    slots: Slots
    integers: NDArray[Any]
    uses: tuple[Use, ...]
    product: IntegerProduct | None = None

    @property
    def stored(self) -> str:
        """Name of the integers; several places may read the same."""
        return str(self.node.input[self.slots.integers])

    @property
    def signed(self) -> bool:
        return self.integers.dtype.name.startswith("int")

    @property
    def bits(self) -> int:
        return _BITS[self.integers.dtype.name]

    @property
    def blockwise(self) -> bool:
        return self.product is None and bool(attribute(self.node, "block_size", 0))


def find_weights(model: onnx.ModelProto) -> Iterator[Weight]:
    """Yield what is stored in 4 or 8 bits and multiplied, in the order of the graph."""
    for scope in scopes(model):
        for node in scope.graph.node:
            if node.op_type == "DequantizeLinear":
                yield from _dequantized(node, scope)
            elif (product := integer_product(node, scope)) is not None:
                yield from _multiplied(product, scope)


def _dequantized(node: onnx.NodeProto, scope: Scope) -> Iterator[Weight]:
    integers = scope.values(node.input[0])
    if integers is None or integers.dtype.name not in _BITS:
        return
    uses = tuple(_uses(node.output[0], integers.shape, scope))
    if uses:
        yield Weight(quantized_tensor(node), scope, node, _DEQUANTIZE, integers, uses)


def _multiplied(product: IntegerProduct, scope: Scope) -> Iterator[Weight]:
    for side in (product.left, product.right):
        slots, values = side.slots, side.values
        if slots is None or values is None or values.dtype.name not in _BITS:
            continue
        pairs = product.pairs and side is product.right
        order = product.order(values.shape) if pairs else None
        use = Use(product.node, int(slots.integers > 0), order)
        yield Weight(side.name, scope, product.node, slots, values, (use,), product)


def _uses(tensor: str, shape: tuple[int, ...], scope: Scope) -> Iterator[Use]:
    """Yield what multiplies a tensor of floats, directly or behind what moves it."""
    # A node stands there once for each use.
    readers = {id(node): node for node in scope.readers.get(tensor, ())}
    for node in readers.values():
        if node.op_type in HEAVY:
            for position, name in enumerate(node.input[:2]):
                if name == tensor:
                    yield Use(node, position, operand_order(node, position, shape))
        elif node.input[0] == tensor and (move := through(node, shape, scope.known)) is not None:
            for use in _uses(node.output[0], moved_shape(move), scope):
                order = None if use.order is None else use.order.after(*move)
                yield Use(use.node, use.position, order)


def pair_sums(rows: NDArray[Any]) -> NDArray[np.int16]:
    """Return for rows of K integers, [rows, K], the largest sum of two like-signed neighbours in
    each, as a magnitude, [rows]."""
    wide = np.pad(rows.astype(np.int16), ((0, 0), (0, rows.shape[1] % 2)))
    pairs = wide.reshape(len(wide), -1, 2)
    highest = np.maximum(pairs, 0).sum(2, dtype=np.int16).max(1, initial=0)
    lowest = np.minimum(pairs, 0).sum(2, dtype=np.int16).min(1, initial=0)
    sums: NDArray[np.int16] = np.maximum(highest, -lowest)
    return sums
