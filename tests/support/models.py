"""Small real models and data sets for the tests, made from a seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
SIDE = 32


def write_state_dict(path: Path, seed: int = 0) -> Path:
    """Write random weights of torchvision's mobilenet_v2 with 10 classes (9 MB)."""
    import torch
    import torchvision

    torch.manual_seed(seed)
    model = torchvision.models.get_model("mobilenet_v2", weights=None, num_classes=CLASSES)
    torch.save(model.state_dict(), path)
    return path


def write_samples(path: Path, count: int, seed: int = 0, key: str = "image") -> Path:
    """Write an NPZ of smooth random pictures of shape (count, 3, 32, 32) with labels."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 8, 8))
    pictures = coarse.repeat(SIDE // 8, axis=2).repeat(SIDE // 8, axis=3).astype(np.float32)
    np.savez(path, **{key: pictures, "label": rng.integers(0, CLASSES, count)})
    return path


def convnet(widths: Sequence[int] = (8, 16), seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Return an ONNX classifier: convolutions with batch norm and ReLU, pooling, linear."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        scale = 1.0 / np.sqrt(np.prod(shape[1:]))
        values = (rng.normal(size=shape) * scale).astype(np.float32)
        tensors.append(numpy_helper.from_array(values, name))
        return name

    def constant(name: str, values: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    value, channels = "image", 3
    for index, width in enumerate(widths):
        name = f"conv{index}"
        nodes.append(
            helper.make_node(
                "Conv",
                [value, weight(f"{name}.weight", width, channels, 3, 3)],
                [f"{name}.out"],
                name=name,
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
        )
        statistics = [
            constant(f"bn{index}.scale", rng.uniform(0.5, 1.5, width)),
            constant(f"bn{index}.bias", rng.normal(size=width) * 0.1),
            constant(f"bn{index}.mean", rng.normal(size=width) * 0.1),
            constant(f"bn{index}.var", rng.uniform(0.5, 1.5, width)),
        ]
        nodes.append(
            helper.make_node(
                "BatchNormalization",
                [f"{name}.out", *statistics],
                [f"bn{index}.out"],
                name=f"bn{index}",
            )
        )
        nodes.append(
            helper.make_node("Relu", [f"bn{index}.out"], [f"relu{index}.out"], name=f"relu{index}")
        )
        value, channels = f"relu{index}.out", width
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node(
            "Gemm",
            ["flat", weight("head.weight", CLASSES, channels), constant("head.bias", np.zeros(10))],
            ["scores"],
            name="head",
            transB=1,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
