"""The layers of a prepared module, as algorithms see them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import onnx
import torch
from torch import nn

from lighten_service.worker.engines.torch_operators import LAYERS, TRANSPOSED, Operator, bounds
from lighten_service.worker.graphs.walk import consumers
from lighten_service.worker.integers.pairs import Order, convolution_order, matrix_order
from lighten_service.worker.kernels import Kernel
from lighten_service.worker.quantized import Layer

_WEIGHT: Final = re.compile(r"(?P<layer>.+)\.weight(_\d+)?")
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def torch_layers(
    module: torch.fx.GraphModule,
    operators: Iterable[Operator],
    tensor_names: Mapping[str, tuple[str, str]],
) -> tuple[Layer, ...]:
    """Return the layers in execution order.

    Convolutions with a padding of anything but zeros are left out: a `Kernel` has none.

    Args:
        module: float.
        operators: of the module.
        tensor_names: names of weight and output in the exported graph, by layer.
    """
    found = []
    for operator in operators:
        layer: Any = module.get_submodule(operator.name)
        if not isinstance(layer, LAYERS) or getattr(layer, "padding_mode", "zeros") != "zeros":
            continue
        weight, output = tensor_names.get(operator.name, ("", ""))
        follower = module.get_submodule(operator.activation) if operator.activation else None
        found.append(
            Layer(
                name=operator.name,
                op=operator.op,
                kernel=layer_kernel(layer),
                weight=weight,
                output=output,
                weight_shape=tuple(layer.weight.shape),
                activation=None if follower is None else bounds(follower),
            )
        )
    return tuple(found)


def layer_tensors(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Return the names of weight and output of the layers of an exported simulation, by layer.

    The exporter calls a weight after its module, with a number behind it where it transposed it.
    """
    readers, found = consumers(graph), {}
    for node in graph.node:
        match = _WEIGHT.fullmatch(node.input[1]) if len(node.input) > 1 else None
        if match is None or node.op_type not in _WEIGHTED:
            continue
        # A linear layer with a bias is two nodes where its input has more than two axes.
        bias = f"{match['layer']}.bias"
        sums = [reader for reader in readers[node.output[0]] if bias in reader.input]
        found[match["layer"]] = node.input[1], (sums or [node])[0].output[0]
    return found


def weight_orders(layer: nn.Module) -> tuple[Order, ...]:
    """Return the order in which an integer kernel adds up a module's weight; none where it adds no
    pairs, as for modules that are no layers."""
    order = None
    if isinstance(layer, nn.Linear):
        order = matrix_order(layer.weight.shape, k_axis=1)
    elif isinstance(layer, LAYERS) and not isinstance(layer, TRANSPOSED):
        convolution: Any = layer
        order = convolution_order(convolution.weight.shape, convolution.groups)
    return () if order is None else (order,)


def layer_kernel(layer: Any) -> Kernel:
    """Return how a convolution or linear layer computes; padding with zeros."""
    if isinstance(layer, nn.Linear):
        return Kernel()
    return Kernel(
        spatial=len(layer.kernel_size),
        transposed=isinstance(layer, TRANSPOSED),
        stride=layer.stride,
        padding=_padding(layer),
        dilation=layer.dilation,
        output_padding=layer.output_padding,
        groups=layer.groups,
    )


def _padding(layer: Any) -> tuple[tuple[int, int], ...]:
    if layer.padding == "valid":
        return ((0, 0),) * len(layer.kernel_size)
    if layer.padding != "same":
        return tuple((pad, pad) for pad in layer.padding)
    total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return tuple((pad // 2, pad - pad // 2) for pad in total)
