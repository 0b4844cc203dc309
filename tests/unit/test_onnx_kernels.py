"""Kernels of ONNX nodes against ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lighten_service.worker.engines.onnx_kernels import kernel_of
from lighten_service.worker.graphs.shapes import tensor_shapes
from tests.support import onnx_models as zoo

pytest.importorskip("onnxruntime")

from lighten_service.worker.runtime import GraphSession

PLAIN = [
    {"strides": [2, 1], "pads": [0, 1, 2, 3]},
    {"dilations": [2, 1], "group": 2},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]
TRANSPOSED = [
    {"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 2]},
    {"strides": [2, 2], "dilations": [1, 2], "group": 2},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"output_shape": [14, 13], "strides": [2, 2]},
]


def _model(op: str, weight: tuple[int, ...], attributes: dict[str, object]) -> onnx.ModelProto:
    b = zoo.Builder(17)
    b.add(op, ["x", b.weight("w", *weight)], "y", **attributes)
    shape = ["N", 4, *[7] * (len(weight) - 2)] if len(weight) > 2 else ["N", 4]
    return b.model([zoo.tensor("x", shape)], [zoo.tensor("y", [None] * len(shape))])


def _compare(op: str, weight: tuple[int, ...], attributes: dict[str, object]) -> None:
    model = _model(op, weight, attributes)
    node = model.graph.node[0]
    kernel = kernel_of(node, weight, tensor_shapes(model))
    assert kernel is not None
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *[7] * (len(weight) - 2))).astype(np.float32)
    values = torch.tensor(onnx.numpy_helper.to_array(model.graph.initializer[0]))
    expected = GraphSession(model).predict({"x": x})["y"]

    actual = kernel.apply(torch.tensor(x), values, None)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attributes", PLAIN, ids=str)
def test_convolutions(attributes: dict[str, object]) -> None:
    _compare("Conv", (6, 4 // int(str(attributes.get("group", 1))), 3, 2), attributes)


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_transposed_convolutions(attributes: dict[str, object]) -> None:
    _compare("ConvTranspose", (4, 6 // int(str(attributes.get("group", 1))), 3, 3), attributes)


@pytest.mark.parametrize("spatial", [1, 3])
def test_other_numbers_of_dimensions(spatial: int) -> None:
    _compare("Conv", (6, 4, *[3] * spatial), {"pads": [1] * (2 * spatial)})
    _compare("ConvTranspose", (4, 6, *[3] * spatial), {"strides": [2] * spatial})


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}], ids=str)
def test_products_that_do_more_have_no_kernel(attributes: dict[str, object]) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], **attributes)
    assert kernel_of(node, (4, 3), {}) is None


def test_what_cannot_be_told_has_no_kernel() -> None:
    same = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    assert kernel_of(same, (6, 4, 3, 3), {}) is None
    assert kernel_of(helper.make_node("Conv", ["x", "w"], ["y"]), (6, 4, 3, 3, 3, 3), {}) is None
    assert kernel_of(helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 4, 3), {}) is None
