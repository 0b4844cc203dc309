"""Layers as matrix products give what the layers give."""

import pytest

pytest.importorskip("torch")

import torch

from lighten_service.worker.algorithms import unfold
from lighten_service.worker.kernels import Kernel

PLANE = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
LAYERS = {
    "linear": (Kernel(), (5, 6), (4, 3, 6)),
    "convolution": (Kernel(2, groups=1, **PLANE), (4, 3, 3, 2), (2, 3, 9, 8)),
    "grouped": (Kernel(2, groups=2, **PLANE), (6, 2, 3, 2), (2, 4, 9, 8)),
    "depthwise": (Kernel(2, groups=4, **PLANE), (4, 1, 3, 2), (2, 4, 9, 8)),
    "of one dimension": (Kernel(1, False, (2,), ((1, 1),), (1,)), (4, 3, 3), (2, 3, 7)),
    "transposed": (
        Kernel(2, True, (2, 1), ((1, 0), (1, 2)), (1, 2), (1, 0), groups=2),
        (6, 2, 3, 2),
        (2, 6, 5, 4),
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest):
    kernel, weight, x = LAYERS[request.param]
    torch.manual_seed(0)
    return kernel, torch.randn(weight), torch.randn(x)


def test_rows_times_matrix_is_the_output(layer) -> None:
    kernel, weight, x = layer
    rows = unfold.rows(kernel, unfold.windows(kernel, x, weight.shape))
    product = rows @ unfold.weight_matrix(kernel, weight).mT
    expected = unfold.output_rows(kernel, kernel.apply(x, weight, None))
    torch.testing.assert_close(product, expected)


def test_some_rows_are_those_of_all(layer) -> None:
    kernel, weight, x = layer
    view, output = unfold.windows(kernel, x, weight.shape), kernel.apply(x, weight, None)
    index = torch.tensor([5, 0, 3])
    assert torch.equal(unfold.rows(kernel, view, index), unfold.rows(kernel, view)[:, index])
    assert torch.equal(
        unfold.output_rows(kernel, output, index), unfold.output_rows(kernel, output)[:, index]
    )


def test_the_matrix_goes_back_to_the_weight(layer) -> None:
    kernel, weight, _ = layer
    matrix = unfold.weight_matrix(kernel, weight)
    assert torch.equal(unfold.weight_of_matrix(kernel, matrix, weight.shape), weight)


def test_channel_values_stand_beside_their_channels(layer) -> None:
    kernel, weight, _ = layer
    shape = [1] * weight.ndim
    shape[kernel.channel_axis] = -1
    scale = torch.arange(1.0, weight.shape[kernel.channel_axis] + 1).reshape(shape)
    scaled = unfold.weight_matrix(kernel, weight * scale)
    matrix = unfold.weight_matrix(kernel, weight) * unfold.channel_matrix(kernel, scale)
    assert torch.equal(scaled, matrix)
