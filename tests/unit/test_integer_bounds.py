"""Weights within the bound of pairs: the smallest scales for it, and the smallest mends."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lighten_service.worker.graphs.walk import constants, consumers
from lighten_service.worker.integers.bounds import bounded, bounded_scale, kept_bounded, lowered
from lighten_service.worker.integers.pairs import (
    Order,
    convolution_order,
    matrix_order,
    orders_of,
)

# Name: shape, groups of a convolution or None for a matrix.
WEIGHTS = {
    "conv": ((6, 5, 3, 3), 1),
    "grouped": ((8, 3, 3, 3), 2),
    "grey": ((6, 1, 3, 3), 1),
    "multiplier": ((6, 1, 3, 3), 3),
    "one_dimension": ((6, 4, 3), 1),
    "linear": ((7, 33), None),
}


@pytest.fixture(params=WEIGHTS)
def case(request: pytest.FixtureRequest) -> tuple[torch.Tensor, tuple[Order, ...]]:
    shape, groups = WEIGHTS[request.param]
    torch.manual_seed(0)
    order = convolution_order(shape, groups) if groups else matrix_order(shape, k_axis=1)
    assert order is not None
    return torch.randn(shape), (order,)


def per_channel(weight: torch.Tensor) -> torch.Tensor:
    """Return AIMET's scale: the whole range in [-128, 127]."""
    rows = weight.flatten(1)
    top = torch.maximum(rows.amax(1) / 127, -rows.amin(1) / 128)
    return top.reshape(-1, *[1] * (weight.dim() - 1))


def largest_pair(integers: torch.Tensor, orders: tuple[Order, ...]) -> float:
    """Return the largest magnitude of a sum of like-signed neighbours, the slow and sure way."""
    largest = 0.0
    for order in orders:
        for row in order.rows(integers).tolist():
            for first, second in zip(row[::2], [*row[1::2], 0.0][: len(row[::2])], strict=True):
                positive = max(first, 0) + max(second, 0)
                largest = max(largest, positive, -(min(first, 0) + min(second, 0)))
    return largest


def rounded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.round(weight / scale).clamp(-128, 127)


def test_nearest_rounding_breaks_the_bound_and_the_scale_found_keeps_it(case) -> None:
    weight, orders = case
    scale = per_channel(weight)
    assert largest_pair(rounded(weight, scale), orders) > 128
    found = bounded_scale(weight, scale, orders)
    integers = rounded(weight, found)
    assert largest_pair(integers, orders) <= 128
    assert integers.min() >= -127
    assert (found >= scale).all()
    assert kept_bounded(weight, found, orders) is weight


def test_the_scale_found_is_the_smallest(case) -> None:
    weight, orders = case
    found = bounded_scale(weight, per_channel(weight), orders)
    start = weight.flatten(1).abs().amax(1).reshape(found.shape) / 127
    for share in np.linspace(0, 0.9995, 400):
        scale = start + (found - start) * share
        grown = (found > start * 1.001).flatten()
        for channel in torch.nonzero(grown).flatten().tolist():
            alone = torch.zeros_like(weight)
            alone[channel] = rounded(weight, scale)[channel]
            assert largest_pair(alone, orders) > 128


def test_one_scale_for_the_tensor_suits_all_channels(case) -> None:
    weight, orders = case
    found = bounded_scale(weight, per_channel(weight).max(), orders)
    assert found.shape == ()
    assert largest_pair(rounded(weight, found), orders) <= 128


def test_depthwise_kernels_add_no_pairs_and_lose_only_the_lowest_integer() -> None:
    assert convolution_order((6, 1, 3, 3), 6) is None
    weight = torch.full((6, 1, 3, 3), -1.0)
    scale = per_channel(weight)
    assert (rounded(weight, scale) == -128).all()
    found = bounded_scale(weight, scale, ())
    assert (rounded(weight, found) == -127).all()


def test_ranges_that_cut_off_stay_and_cut_off_at_127() -> None:
    weight = torch.tensor([[-4.0, 0.1, 4.0, -0.2]])
    order = (matrix_order((1, 4), k_axis=1),)
    scale = torch.full((1, 1), 2.0 / 128)
    assert torch.equal(bounded_scale(weight, scale, order), scale)
    kept = kept_bounded(weight, scale, order)
    assert rounded(kept, scale).tolist() == [[-127, 6, 127, -13]]
    # What no rule asks to move stays as it is.
    assert kept[0, 1:].tolist() == weight[0, 1:].tolist()


def test_every_order_of_a_weight_that_is_read_twice_holds() -> None:
    torch.manual_seed(1)
    weight = torch.randn(8, 8)
    orders = (matrix_order((8, 8), k_axis=0), matrix_order((8, 8), k_axis=1))
    one = bounded_scale(weight, per_channel(weight), orders[1:])
    assert largest_pair(rounded(weight, one), orders[:1]) > 128
    both = bounded_scale(weight, per_channel(weight), orders)
    assert largest_pair(rounded(weight, both), orders) <= 128
    narrow = per_channel(weight) * 0.5
    assert largest_pair(rounded(kept_bounded(weight, narrow, orders), narrow), orders) <= 128


def test_a_pair_gives_way_by_the_smallest_distance() -> None:
    scaled = torch.tensor([[100.2, 60.4, -90.0, -50.0, 120.0, -120.0]])
    orders = (matrix_order((1, 6), k_axis=1),)
    found = bounded(torch.round(scaled), scaled, orders)
    assert found.tolist() == [[84, 44, -84, -44, 120, -120]]
    best = min(((first - 100.2) ** 2 + (128 - first - 60.4) ** 2, first) for first in range(1, 128))
    assert best[1] == 84


def test_mended_integers_are_never_larger(case) -> None:
    weight, orders = case
    scaled = weight / (per_channel(weight) * 0.3)
    before = torch.round(scaled).clamp(-127, 127)
    after = bounded(before, scaled, orders)
    assert largest_pair(after, orders) <= 128
    assert (after.abs() <= before.abs()).all()
    assert (after * before >= 0).all()


def test_values_close_to_a_tie_may_round_to_either_side() -> None:
    orders = (matrix_order((1, 2), k_axis=1),)
    weight = torch.tensor([[63.49999, 65.0]])
    kept = kept_bounded(weight, torch.ones(1, 1), orders)
    assert kept.tolist() == [[63.0, 65.0]]
    found = bounded_scale(weight, torch.full((1, 1), 65 / 127), orders)
    up = torch.floor((weight / found).abs() + 0.5001)
    assert up.sum() <= 128


def test_the_cheaper_value_of_a_pair_is_lowered() -> None:
    integers = torch.tensor([[65.0, 64.0, -70.0, -60.0, 10.0]])
    cost = torch.tensor([[2.0, 1.0, 1.0, 2.0, 0.0]])
    orders = (matrix_order((1, 5), k_axis=1),)
    first = lowered(integers, cost, orders)
    assert first is not None
    assert first.tolist() == [[65, 63, -69, -60, 10]]
    second = lowered(first, cost, orders)
    assert second is not None
    assert second.tolist() == [[65, 63, -68, -60, 10]]
    assert lowered(second, cost, orders) is None


def _graph(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [value("x", TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, None)], tensors)


def found_rows(graph: onnx.GraphProto, shape: tuple[int, ...]) -> list[list[list[int]]]:
    orders = orders_of("w", shape, consumers(graph), constants(graph))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    for order in orders:
        assert np.array_equal(order.restored(order.rows(numbers), shape), numbers)
        from_torch = order.rows(torch.from_numpy(numbers))
        assert np.array_equal(from_torch.numpy(), order.rows(numbers))
    return [order.rows(numbers).tolist() for order in orders]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [[0, 2, 4], [1, 3, 5]]),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), [[0, 2, 4], [1, 3, 5]]),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), [[0, 2, 4], [1, 3, 5]]),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_products_add_along_k(node: onnx.NodeProto, expected: list[list[int]]) -> None:
    assert found_rows(_graph([node]), (3, 2)) == [expected]


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        helper.make_node("Gather", ["w", "x"], ["y"]),
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"]),
    ],
)
def test_other_operators_add_no_pairs(node: onnx.NodeProto) -> None:
    assert found_rows(_graph([node]), (3, 2)) == []


def test_convolutions_add_kernel_positions_first() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    # (out, in, width): the two channels of one position are neighbours.
    assert found_rows(_graph([node]), (1, 2, 3)) == [[[0, 3, 1, 4, 2, 5]]]


def test_stacks_of_matrices_add_along_the_axis_before_the_last() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert found_rows(_graph([node]), (2, 2, 2)) == [[[0, 2], [1, 3], [4, 6], [5, 7]]]


def test_moves_before_the_product_count() -> None:
    transposed = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    assert found_rows(_graph(transposed), (3, 2)) == [[[0, 1], [2, 3], [4, 5]]]
    reshaped = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("MatMul", ["x", "r"], ["y"]),
    ]
    graph = _graph(reshaped, shape=np.array([-1, 2]))
    # w.T is [0, 2, 4, 1, 3, 5] in memory.
    assert found_rows(graph, (3, 2)) == [[[0, 4, 3], [2, 1, 5]]]


def test_each_reader_of_a_tied_weight_has_its_order() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    assert found_rows(_graph(nodes), (2, 2)) == [[[0, 2], [1, 3]], [[0, 1], [2, 3]]]
