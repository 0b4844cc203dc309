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
