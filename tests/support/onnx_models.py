"""Small ONNX models, generated: one function a kind of network."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Builder:
    """Collects nodes and seeded weights; ``save`` makes the model of them."""

    def __init__(self, opset: int, seed: int = 0) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def weight(self, name: str, *shape: int, spread: float = 0.4) -> str:
        values = self._rng.standard_normal(shape) * spread
        return self.constant(name, values.astype(np.float32))

    def constant(self, name: str, values: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(self, data: str, name: str, channels: tuple[int, int], **attributes: object) -> str:
        """3x3, padded, without a bias; ``channels``: inputs of a group, outputs."""
        weight = self.weight(f"{name}.weight", channels[1], channels[0], 3, 3)
        return self.add("Conv", [data, weight], name, pads=[1, 1, 1, 1], **attributes)

    def conv_same(self, data: str, name: str, channels: int) -> str:
        """3x3 with stride 2 and the padding that SAME_UPPER means, without a bias."""
        weight = self.weight(f"{name}.weight", channels, 3, 3, 3)
        return self.add("Conv", [data, weight], name, auto_pad="SAME_UPPER", strides=[2, 2])

    def batch_norm(self, data: str, name: str, channels: int) -> str:
        variance = np.abs(self._rng.standard_normal(channels)) + 0.5
        parameters = [
            self.weight(f"{name}.gamma", channels, spread=1.0),
            self.weight(f"{name}.beta", channels),
            self.weight(f"{name}.mean", channels),
            self.constant(f"{name}.var", variance.astype(np.float32)),
        ]
        return self.add("BatchNormalization", [data, *parameters], name)

    def relu6(self, data: str, name: str) -> str:
        if self.opset < 11:
            return self.add("Clip", [data], name, min=0.0, max=6.0)
        low = self.constant(f"{name}.min", np.float32(0))
        high = self.constant(f"{name}.max", np.float32(6))
        return self.add("Clip", [data, low, high], name)

    def model(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        version = max(8, helper.find_min_ir_version_for(opsets))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        onnx.checker.check_model(model)
        return model


def tensor(name: str, shape: list[int | str | None], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def mobile_net(opset: int = 17, *, batch: int | str = "N") -> onnx.ModelProto:
    """Conv, batch norm, ReLU6, depthwise, ReLU6, pointwise, ReLU, pool, Gemm: 3x16x16 to 5."""
    b = Builder(opset)
    # As many exporters write it: no names, no group.
    x = b.relu6(b.batch_norm(b.conv("image", "stem", (3, 8)), "bn", 8), "act")
    x = b.relu6(b.conv(x, "depthwise", (1, 8), group=8), "depthwise_act")
    weight, bias = b.weight("point.weight", 16, 8, 1, 1), b.weight("point.bias", 16)
    x = b.add("Relu", [b.add("Conv", [x, weight, bias], "point")], "point_act")
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x], "pool")], "flat")
    head, shift = b.weight("head.weight", 5, 16), b.weight("head.bias", 5)
    b.add("Gemm", [x, head, shift], "logits", transB=1)
    return b.model([tensor("image", [batch, 3, 16, 16])], [tensor("logits", [batch, 5])])


def relu_net(*, batch_norm: bool = True) -> onnx.ModelProto:
    """Three 3x3 convolutions with ReLU between them, the channels of unlike size."""
    b = Builder(17, seed=3)
    x = b.conv("image", "first", (3, 8), group=1)
    x = b.batch_norm(x, "bn", 8) if batch_norm else x
    x = b.add("Relu", [x], "first_act")
    x = b.add("Relu", [b.conv(x, "second", (8, 8))], "second_act")
    b.conv(x, "third", (8, 4))
    return b.model([tensor("image", ["N", 3, 12, 12])], [tensor("third", ["N", 4, 12, 12])])


def layer_kinds(*, batch: int | str = "N") -> onnx.ModelProto:
    """Each kind of layer, with and without a bias, 3x13x13 to two outputs."""
    b = Builder(17, seed=7)
    x = b.conv_same("image", "same", 6)
    x = b.add("Relu", [x], "same_act")
    weight, bias = b.weight("up.weight", 6, 4, 3, 3), b.weight("up.bias", 8)
    window = {"strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0], "group": 2}
    x = b.add("Relu", [b.add("ConvTranspose", [x, weight, bias], "up", **window)], "up_act")
    x = b.relu6(b.conv(x, "depthwise", (1, 8), group=8), "depthwise_act")
    x = b.add("Flatten", [b.add("GlobalAveragePool", [x], "pool")], "flat")
    x = b.add("MatMul", [x, b.weight("bare.weight", 8, 12)], "bare")
    x = b.add("MatMul", [x, b.weight("added.weight", 12, 10)], "added.product")
    x = b.add("Relu", [b.add("Add", [b.weight("added.bias", 10), x], "added")], "added_act")
    b.add("Gemm", [x, b.weight("head.weight", 10, 5), b.weight("head.bias", 5)], "logits")
    outputs = [tensor("logits", [batch, 5]), tensor("up_act", [batch, 8, None, None])]
    return b.model([tensor("image", [batch, 3, 13, 13])], outputs)


def branches() -> onnx.ModelProto:
    """Two convolutions with an If between them whose branches read the first from outside."""
    b = Builder(17)
    x = b.conv("image", "first", (3, 4))
    found = {
        name: helper.make_graph(
            [helper.make_node(operator, [x], [f"{name}.out"])],
            name,
            [],
            [tensor(f"{name}.out", ["N", 4, 16, 16])],
        )
        for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    chosen = b.add("If", [b.constant("yes", np.array(True))], "chosen", **found)
    b.conv(chosen, "last", (4, 4))
    return b.model([tensor("image", ["N", 3, 16, 16])], [tensor("last", ["N", 4, 16, 16])])


def high_bias_net() -> onnx.ModelProto:
    """Conv, batch norm with outputs far above zero, ReLU, pointwise Conv."""
    b = Builder(17, seed=11)
    x = b.conv("image", "first", (3, 8))
    statistics = {"gamma": 0.2, "beta": 5.0, "mean": 0.0, "var": 4.0}
    names = [b.constant(f"bn.{n}", np.full(8, v, np.float32)) for n, v in statistics.items()]
    x = b.add("Relu", [b.add("BatchNormalization", [x, *names], "bn")], "act")
    b.add("Conv", [x, b.weight("last.weight", 4, 8, 1, 1), b.weight("last.bias", 4)], "last")
    return b.model([tensor("image", ["N", 3, 12, 12])], [tensor("last", ["N", 4, 12, 12])])


def hard_swish() -> onnx.ModelProto:
    """A convolution and a hard swish written out, which has a Clip from 0 to 6."""
    b = Builder(17, seed=13)
    b.conv("image", "first", (3, 4))
    x = b.relu6(b.add("Add", ["first", b.constant("three", np.float32(3))], "shifted"), "gate")
    x = b.add("Div", [x, b.constant("six", np.float32(6))], "share")
    b.add("Mul", ["first", x], "swish")
    return b.model([tensor("image", ["N", 3, 8, 8])], [tensor("swish", ["N", 4, 8, 8])])


def shared_weight() -> onnx.ModelProto:
    """One weight in two convolutions in a row, then a third."""
    b = Builder(17, seed=9)
    weight = b.weight("shared.weight", 3, 3, 3, 3)
    x = b.add("Relu", [b.add("Conv", ["image", weight], "once", pads=[1, 1, 1, 1])], "once_act")
    x = b.add("Relu", [b.add("Conv", [x, weight], "again", pads=[1, 1, 1, 1])], "again_act")
    b.conv(x, "last", (3, 4))
    return b.model([tensor("image", ["N", 3, 12, 12])], [tensor("last", ["N", 4, 12, 12])])


def attention(opset: int = 17) -> onnx.ModelProto:
    """Token ids and a mask through an embedding and one attention head: two outputs."""
    b = Builder(opset, seed=1)
    b.weight("embedding", 50, 16, spread=1.0)
    x = b.add("Gather", ["embedding", "ids"], "embedded")
    heads = {}
    for name in ("query", "key", "value"):
        product = b.add("MatMul", [x, b.weight(f"{name}.weight", 16, 16)], f"{name}.product")
        heads[name] = b.add("Add", [product, b.weight(f"{name}.bias", 16)], name)
    b.add("Transpose", ["key"], "key_t", perm=[0, 2, 1])
    b.add("MatMul", ["query", "key_t"], "scores")
    b.add("Mul", ["scores", b.constant("scale", np.float32(0.25))], "scaled")
    b.add("Cast", ["mask"], "mask_f", to=FLOAT)
    b.add("Sub", ["mask_f", b.constant("one", np.float32(1))], "mask_low")
    b.add("Mul", ["mask_low", b.constant("big", np.float32(20))], "mask_bias")
    b.add("Unsqueeze", ["mask_bias", b.constant("axis", np.array([1]))], "mask_row")
    b.add("Add", ["scaled", "mask_row"], "masked")
    b.add("Softmax", ["masked"], "weights", axis=-1)
    b.add("MatMul", ["weights", "value"], "mixed")
    b.add(
        "Gemm",
        [_first_token(b), b.weight("head.weight", 16, 3), b.weight("head.bias", 3)],
        "logits",
    )
    return b.model(
        [tensor("ids", ["N", 8], INT64), tensor("mask", ["N", 8], INT64)],
        [tensor("logits", ["N", 3]), tensor("mixed", ["N", 8, 16])],
    )


def _first_token(b: Builder) -> str:
    return b.add("Gather", ["mixed", b.constant("zero", np.array(0))], "token", axis=1)


def images(count: int, size: int = 16, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((count, 3, size, size)).astype(np.float32)}


def tokens(count: int, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones((count, 8), np.int64)
    mask[:, 6:] = 0
    return {"ids": rng.integers(0, 50, (count, 8)), "mask": mask}


def save_with_external_data(model: onnx.ModelProto, path: Path, location: str) -> None:
    """Write the model with every weight in a file of its own."""
    onnx.save(model, str(path), save_as_external_data=True, location=location, size_threshold=0)
