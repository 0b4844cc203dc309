"""Which channels can be scaled together, how far, and what it makes of weights."""

import math

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("aimet_onnx")

from lighten_service.worker.algorithms.channel_ranges import channel_scales
from lighten_service.worker.engines.onnx_heavy import heavy_layers
from lighten_service.worker.graphs.channels import ChannelSet, channel_sets
from lighten_service.worker.kernels import Kernel
from lighten_service.worker.rescale import ChannelScales, rescaled_weight
from tests.support import onnx_models as zoo
from tests.support.onnx_models import Builder, tensor


def sets_of(model: onnx.ModelProto) -> dict[str, ChannelSet]:
    """The sets by the first tensor in them; layers are called after their outputs."""
    for node in model.graph.node:
        node.name = node.output[0]
    layers = [heavy.layer for heavy in heavy_layers(model)]
    return {found.tensors[0]: found for found in channel_sets(model, layers)}


def built(b: Builder, output: str, *shape: int) -> dict[str, ChannelSet]:
    inputs = [tensor("image", ["N", 3, 8, 8])]
    return sets_of(b.model(inputs, [tensor(output, ["N", *shape])]))


def test_a_depthwise_layer_reads_one_set_and_writes_another() -> None:
    found = sets_of(zoo.mobile_net())
    stem, depthwise, point = list(found.values())[:3]

    # The batch norm is not folded, which the stem's channels do not pass.
    assert stem.obstacle == "BatchNormalization cannot be scaled"
    assert depthwise.tensors == ["depthwise", "depthwise_act"]
    assert (depthwise.writers, depthwise.readers) == (["depthwise"], ["point"])
    assert (depthwise.bound, depthwise.channels, depthwise.obstacle) == (6.0, 8, "")
    assert point.tensors == ["point", "point_act", "pool", "flat"]
    assert (point.readers, point.bound, point.obstacle) == (["logits"], math.inf, "")
    assert found["logits"].obstacle == "it is an output of the model"


def test_a_residual_sum_joins_what_it_adds() -> None:
    b = Builder(17)
    b.add("Relu", [b.conv("image", "a", (3, 4))], "a_act")
    b.conv("a_act", "b", (4, 4))
    b.add("MaxPool", [b.add("Add", ["a_act", "b"], "sum")], "pool", kernel_shape=[2, 2])
    b.conv("pool", "c", (4, 2))

    found = built(b, "c", 2, 7, 7)

    joined = found["a"]
    assert joined.tensors == ["a", "a_act", "b", "sum", "pool"]
    assert (joined.writers, joined.readers, joined.obstacle) == (["a", "b"], ["b", "c"], "")


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "channels"),
    [
        ("Concat", ["a", "a"], {"axis": 1}, 8),
        ("Sigmoid", ["a"], {}, 4),
        ("Mul", ["a", "a"], {}, 4),
        ("Add", ["a", "one"], {}, 4),
        ("Clip", ["a", "minus_one", "one"], {}, 4),
        ("Reshape", ["a", "folded"], {}, 8),
        ("ReduceMean", ["a"], {"axes": [1]}, 1),
    ],
)
def test_what_mixes_or_bends_channels_is_an_obstacle(
    operator: str, inputs: list[str], attributes: dict[str, object], channels: int
) -> None:
    b = Builder(17)
    b.conv("image", "a", (3, 4))
    for name, value in (("one", 1), ("minus_one", -1)):
        b.constant(name, np.float32(value))
    b.constant("folded", np.array([-1, 8, 4, 8]))
    b.conv(b.add(operator, inputs, "mixed", **attributes), "last", (channels, 2))

    found = built(b, "last", 2, 4 if operator == "Reshape" else 8, 8)

    assert operator in found["a"].obstacle
    assert set(found) == {"a", "last"}


def test_an_obstacle_on_one_side_of_a_sum_is_one_for_both() -> None:
    b = Builder(17)
    b.conv("image", "a", (3, 4))
    b.conv("image", "b", (3, 4))
    b.conv(b.add("Add", ["a", "b"], "sum"), "last", (4, 2))
    b.conv(b.add("Sigmoid", ["b"], "gate"), "other", (4, 2))
    b.add("Add", ["last", "other"], "total")

    found = built(b, "total", 2, 8, 8)

    assert found["a"].writers == ["a", "b"]
    assert "Sigmoid" in found["a"].obstacle


def test_a_branch_that_reads_from_outside_is_an_obstacle() -> None:
    assert sets_of(zoo.branches())["first"].obstacle == "If cannot be scaled"


def test_layers_of_one_weight_are_obstacles() -> None:
    found = sets_of(zoo.shared_weight())

    assert [one.obstacle for one in found.values()][:2] == [
        "once shares its weight",
        "again shares its weight",
    ]


def test_a_matrix_product_and_its_bias_are_one_layer() -> None:
    found = sets_of(zoo.layer_kinds())

    assert found["added"].writers == ["added.product"]
    assert (found["added"].readers, found["added"].axis) == (["logits"], 1)
    assert found["bare"].readers == ["added.product"]


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "Add"])
def test_a_bound_that_no_layer_sees_is_an_obstacle(operator: str) -> None:
    b = Builder(17)
    b.relu6(b.conv("image", "a", (3, 4)), "act")
    inputs = ["act", b.conv("image", "b", (3, 4))] if operator == "Add" else ["act"]
    b.conv(b.add(operator, inputs, "hidden"), "last", (4, 2))

    side = 8 if operator == "Add" else 1
    assert "Clip" in built(b, "last", 2, side, side)["a"].obstacle


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (Kernel(), (6, 4)),
        (Kernel(2, stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1)), (6, 4, 3, 3)),
        (Kernel(2, stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1), groups=2), (6, 2, 3, 3)),
        (Kernel(1, stride=(1,), padding=((0, 0),), dilation=(1,), groups=4), (4, 1, 3)),
        (
            Kernel(
                1,
                transposed=True,
                stride=(2,),
                padding=((1, 0),),
                dilation=(1,),
                output_padding=(0,),
                groups=2,
            ),
            (4, 3, 3),
        ),
    ],
    ids=["linear", "plain", "grouped", "depthwise", "transposed"],
)
def test_a_rescaled_weight_reads_and_writes_scaled_channels(
    kernel: Kernel, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(2, 4, *[5] * kernel.spatial)
    outputs = shape[1] * kernel.groups if kernel.transposed else shape[0]
    scales = ChannelScales(torch.rand(4) + 0.5, torch.rand(outputs) + 0.5)

    changed = rescaled_weight(weight, kernel, scales)

    positions = [1] * kernel.spatial
    scaled = kernel.apply(x * scales.input.reshape(4, *positions), changed, None)
    expected = kernel.apply(x, weight, None) * scales.output.reshape(-1, *positions)
    torch.testing.assert_close(scaled, expected)


def test_scales_bring_channels_as_close_as_the_strength_says() -> None:
    largest = torch.tensor([8.0, 2.0, 0.5, 0.0])

    assert channel_scales(largest, 1.0, math.inf).tolist() == [1, 4, 16, 1]
    assert channel_scales(largest, 0.5, math.inf).tolist() == [1, 2, 4, 1]
    assert channel_scales(largest, 0.0, math.inf).tolist() == [1, 1, 1, 1]
    assert channel_scales(torch.tensor([1e3, 1e-3]), 1.0, math.inf).tolist() == [1, 64]


def test_no_channel_is_scaled_beyond_the_bound_of_a_clip() -> None:
    # Of a set whose Clip another layer reads around: 12 is beyond the bound.
    largest = torch.tensor([12.0, 6.0, 5.0, 3.0, 0.5])

    scaled = largest * channel_scales(largest, 1.0, 6.0)

    torch.testing.assert_close(scaled, torch.tensor([12.0, 6.0, 6.0, 6.0, 6.0]))
