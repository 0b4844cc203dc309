"""Mean activations that follow from batch norms, against sampling."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lighten_service.worker.graphs.moments import Spread, clipped_normal, propagate

MEANS = torch.tensor([-2.0, -0.3, 0.0, 1.5, 5.8, 9.0])
STDS = torch.tensor([0.7, 1.0, 2.0, 0.5, 1.5, 3.0])


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_a_clipped_normal_has_the_moments_of_its_samples(low: float, high: float) -> None:
    draws = torch.randn(1_000_000, len(MEANS), generator=torch.Generator().manual_seed(0))
    clipped = (draws * STDS + MEANS).clamp(low, high).double()

    spread = clipped_normal(MEANS, STDS, low, high)

    # Six standard errors of a million draws.
    torch.testing.assert_close(spread.mean, clipped.mean(0), rtol=0, atol=6e-3 * 3.0)
    assert spread.std is not None
    torch.testing.assert_close(spread.std, clipped.std(0), rtol=0.02, atol=1e-3)


def test_a_channel_that_never_varies_is_its_clipped_mean() -> None:
    spread = clipped_normal(torch.tensor([-1.0, 0.5, 8.0]), torch.zeros(3), 0.0, 6.0)

    assert spread.mean.tolist() == [0.0, 0.5, 6.0]
    assert spread.std is not None
    assert spread.std.tolist() == [0.0, 0.0, 0.0]


def known(*means: float) -> Spread:
    values = torch.tensor(means, dtype=torch.float64)
    return Spread(values, torch.ones_like(values))


def graph(
    *nodes: onnx.NodeProto, inputs: dict[str, list[int]], **tensors: object
) -> onnx.ModelProto:
    proto = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in tensors.items()],
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)])


def test_a_residual_sum_adds_means_and_variances_before_its_relu() -> None:
    model = graph(
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["out"]),
        inputs={"a": [1, 2, 4, 4], "b": [1, 2, 4, 4]},
    )

    found = propagate(model, {"a": known(1, -1), "b": known(2, 0)})

    expected = clipped_normal(
        torch.tensor([3.0, -1.0]), torch.full((2,), math.sqrt(2)), 0.0, math.inf
    )
    torch.testing.assert_close(found["out"].mean, expected.mean)


def test_global_pooling_and_flattening_keep_the_means_of_channels() -> None:
    model = graph(
        helper.make_node("Clip", ["a", "low", "high"], ["clip"]),
        helper.make_node("GlobalAveragePool", ["clip"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["out"]),
        inputs={"a": [1, 3, 4, 4]},
        low=np.float32(0),
        high=np.float32(6),
    )

    found = propagate(model, {"a": known(-1, 1, 7)})

    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(
        found["out"].mean, clipped_normal(known(-1, 1, 7).mean, one, 0.0, 6.0).mean
    )


def test_channels_are_concatenated_in_their_order() -> None:
    model = graph(
        helper.make_node("Concat", ["a", "b"], ["out"], axis=1),
        inputs={"a": [1, 2, 4, 4], "b": [1, 1, 4, 4]},
    )

    assert propagate(model, {"a": known(1, 2), "b": known(3)})["out"].mean.tolist() == [1, 2, 3]


def test_a_batch_norm_that_was_not_folded_tells_its_moments() -> None:
    model = graph(
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["out"]),
        inputs={"a": [1, 2, 4, 4]},
        g=np.float32([2, -3]),
        b=np.float32([0.5, 1]),
        m=np.float32([9, 9]),
        v=np.float32([9, 9]),
    )

    spread = propagate(model, {})["out"]

    assert spread.mean.tolist() == [0.5, 1.0]
    assert spread.std is not None
    assert spread.std.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MaxPool", ["a"], ["out"], kernel_shape=[2, 2]),
        helper.make_node("Sigmoid", ["a"], ["out"]),
        helper.make_node("Flatten", ["a"], ["out"]),
        helper.make_node("Concat", ["a", "a"], ["out"], axis=2),
        helper.make_node("AveragePool", ["a"], ["out"], kernel_shape=[2, 2], count_include_pad=1),
        helper.make_node("ReduceMean", ["a"], ["out"], axes=[1]),
    ],
    ids=lambda node: node.op_type,
)
def test_what_does_not_follow_from_means_is_not_guessed(node: onnx.NodeProto) -> None:
    model = graph(node, inputs={"a": [1, 2, 4, 4]})

    assert "out" not in propagate(model, {"a": known(1, 2)})
