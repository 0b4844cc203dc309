"""Which weights a kernel multiplies and adds up in pairs, and when their sum can saturate.

On x86 CPUs without VNNI the products of neighbours (0, 1), (2, 3), ... along K are added in 16 bits
with saturation (VPMADDUBSW). An unsigned activation is at most 255: the sum is exact whatever comes
in if and only if the like-signed integers of each pair add up to at most 128 in magnitude, for
128 * 255 fits into 16 bits and 129 * 255 does not. That holds for the stored integers of signed
weights, whatever the zero points. Kernels for ARM can overflow where two integers of -128 meet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import onnx

from lighten_service.worker.graphs.walk import array, attribute

# Largest magnitude of the sum of two like-signed neighbours.
PAIR_LIMIT: Final = 128
# Largest magnitude of one integer; -128 is not safe on ARM.
INTEGER_LIMIT: Final = 127

# numpy.ndarray or torch.Tensor.
A = TypeVar("A", bound=Any)


@dataclass(frozen=True, slots=True)
class Order:
    """How a kernel lays out a weight: reshaped and its axes permuted in turns, then cut into rows
    of ``width`` values (K), each for one output channel."""

    # Shapes that the weight takes on, each with the permutation of its axes.
    moves: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    width: int

    def rows(self, values: A) -> A:
        """Return a weight as [rows, K], numpy arrays and torch tensors alike."""
        moved: Any = values
        for shape, axes in self.moves:
            moved = _permuted(moved.reshape(shape), axes)
        rows: A = moved.reshape(-1, self.width)
        return rows

    def restored(self, rows: A, shape: Sequence[int]) -> A:
        """Return rows as the weight of this shape: undoes `rows`."""
        moved: Any = rows
        for before, axes in reversed(self.moves):
            moved = moved.reshape([before[axis] for axis in axes])
            moved = _permuted(moved, [axes.index(axis) for axis in range(len(axes))])
        values: A = moved.reshape(tuple(shape))
        return values

    def after(self, shape: Sequence[int], axes: Sequence[int]) -> "Order":
        """Return the order of a weight of this shape that is permuted before it gets this far."""
        return Order(((tuple(shape), tuple(axes)), *self.moves), self.width)


def _permuted(values: Any, axes: Sequence[int]) -> Any:
    permute = getattr(values, "permute", None) or values.transpose
    return permute(*axes)


def matrix_order(shape: Sequence[int], *, k_axis: int) -> Order:
    """Return the order of a matrix, or a stack of them, that is multiplied along ``k_axis``, which
    is the last or the one before."""
    axes = [*range(len(shape))]
    axes.append(axes.pop(k_axis))
    return Order(((tuple(shape), tuple(axes)),), int(shape[k_axis]))


def convolution_order(shape: Sequence[int], groups: int) -> Order | None:
    """Return the order of a convolution's weight (out, in / groups, *kernel): kernel axes first,
    then input channels; None for one channel a group, whose kernel adds no pairs."""
    if groups > 1 and shape[0] == groups and shape[1] == 1:
        return None
    axes = (0, *range(2, len(shape)), 1)
    return Order(((tuple(shape), axes),), math.prod(shape[1:]))


def operand_order(node: onnx.NodeProto, position: int, shape: Sequence[int]) -> Order | None:
    """Return the order in which an operator adds up a constant operand.

    None where its kernel adds no pairs: a depthwise convolution, and every operator that is no
    convolution or matrix product or takes the operand for something else. ONNX Runtime computes
    transposed convolutions, and products whose first operand is the weight, in float.
    """
    if position != 1 or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    if node.op_type == "Conv":
        return convolution_order(shape, int(attribute(node, "group", 1)))  # type: ignore[call-overload]
    if len(shape) == 1:
        return matrix_order(shape, k_axis=0)
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    return matrix_order(shape, k_axis=len(shape) - (1 if transposed else 2))


def through(
    node: onnx.NodeProto, shape: Sequence[int], known: Mapping[str, onnx.TensorProto]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return how an operator moves a whole tensor of this shape, without dropping or repeating any
    of it: the shape that it reads it as, and the permutation of its axes; None for others."""
    same = tuple(shape), tuple(range(len(shape)))
    match node.op_type:
        case "Identity" | "Cast" | "Dropout":
            return same
        case "Transpose":
            axes: Any = attribute(node, "perm") or same[1][::-1]
            return tuple(shape), tuple(int(axis) for axis in axes)
        case "Reshape" if node.input[1] in known:
            wanted = _reshaped(shape, array(known[node.input[1]]).reshape(-1).tolist())
        case "Flatten":
            axis = int(attribute(node, "axis", 1))  # type: ignore[call-overload]
            cut = axis % len(shape) if axis < 0 else axis
            wanted = (math.prod(shape[:cut]), math.prod(shape[cut:]))
        case "Squeeze" | "Unsqueeze":
            return _with_axes(node, shape, known)
        case _:
            return None
    return wanted, tuple(range(len(wanted)))


def _with_axes(
    node: onnx.NodeProto, shape: Sequence[int], known: Mapping[str, onnx.TensorProto]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return what `through` does, for axes of size 1 that are taken away or added."""
    axes: Any = attribute(node, "axes", ())
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in known:
            return None
        axes = array(known[node.input[1]]).reshape(-1).tolist()
    if node.op_type == "Squeeze":
        dropped = {int(axis) % len(shape) for axis in axes} or {
            axis for axis, size in enumerate(shape) if size == 1
        }
        wanted = tuple(size for axis, size in enumerate(shape) if axis not in dropped)
    else:
        rank = len(shape) + len(axes)
        added, sizes = {int(axis) % rank for axis in axes}, iter(shape)
        wanted = tuple(1 if axis in added else next(sizes) for axis in range(rank))
    return wanted, tuple(range(len(wanted)))


def _reshaped(shape: Sequence[int], wanted: Sequence[Any]) -> tuple[int, ...]:
    sizes = [shape[i] if size == 0 else int(size) for i, size in enumerate(wanted)]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // max(rest, 1)
    return tuple(sizes)


def moved_shape(move: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape behind what `through` returned."""
    shape, axes = move
    return tuple(shape[axis] for axis in axes)


def orders_of(
    tensor: str,
    shape: Sequence[int],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
    known: Mapping[str, onnx.TensorProto],
) -> tuple[Order, ...]:
    """Return the orders of every kernel that reads a tensor, directly or behind what moves it.

    Args:
        tensor: a constant, or what follows from one alone.
        shape: of the tensor.
        readers: of each tensor of the graph.
        known: constants of the graph.
    """
    found: list[Order] = []
    for node in readers.get(tensor, ()):
        for position, name in enumerate(node.input):
            if name == tensor and (order := operand_order(node, position, shape)) is not None:
                found.append(order)
        move = through(node, shape, known) if node.input[0] == tensor else None
        if move is not None:
            behind = orders_of(node.output[0], moved_shape(move), readers, known)
            found += [order.after(*move) for order in behind]
    return tuple(dict.fromkeys(found))
