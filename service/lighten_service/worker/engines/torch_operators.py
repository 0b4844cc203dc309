"""The operators of a prepared module, as its graph has them.

Preparation makes every operation with a quantizer a module of its own that is called once, in a
`torch.fx.GraphModule`; what is left as functions is not quantized.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from aimet_torch.onnx_utils import map_torch_types_to_onnx
from torch import nn

from lighten_service.worker.engines.torch_prepare import Inputs, run

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: Final = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
# Do nothing at inference. Folded batch norms leave an Identity.
_PASSING: Final = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# By the name of the class, since preparation makes classes of its own from functions.
_ONNX: Final[dict[str, str]] = {
    **{module.__name__: names[0] for module, names in map_torch_types_to_onnx.items()},
    "Hardsigmoid": "HardSigmoid",
    "Sum": "ReduceSum",
}


@dataclass(frozen=True, slots=True)
class Operator:
    """A module that the graph calls. ``name`` is its path."""

    name: str
    # As ONNX calls it; AIMET's or PyTorch's name where ONNX has none.
    op: str
    # Name of the ReLU or clip that alone reads the output of a layer.
    activation: str = ""
    # Names of the model's inputs that it reads, by position of the argument.
    reads: tuple[str, ...] = ()


def operators(
    module: torch.fx.GraphModule, inputs: Inputs, input_names: tuple[str, ...]
) -> tuple[Operator, ...]:
    """Return the operators of a float module in execution order.

    Args:
        module: prepared.
        inputs: one sample.
        input_names: of the model, in order.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    sources = dict(zip(placeholders, input_names, strict=False))
    ranks = _linear_ranks(module, inputs)
    found = []
    for node in _calls(module):
        submodule = module.get_submodule(node.target)
        found.append(
            Operator(
                node.target,
                _onnx_operator(submodule, ranks.get(node.target, 0)),
                _activation_after(module, node) if isinstance(submodule, LAYERS) else "",
                tuple(
                    sources.get(argument, "") if isinstance(argument, torch.fx.Node) else ""
                    for argument in node.args
                ),
            )
        )
    return tuple(found)


def bounds(activation: nn.Module) -> tuple[float, float] | None:
    """Return the bounds of a ReLU or clip, None for other modules."""
    if isinstance(activation, nn.Hardtanh):  # the base of ReLU6
        return float(activation.min_val), float(activation.max_val)
    return (0.0, math.inf) if isinstance(activation, nn.ReLU) else None


def producers(module: torch.fx.GraphModule) -> dict[str, str]:
    """Return the module whose output each module takes first, past those that do nothing; names."""
    found = {}
    for node in module.graph.nodes:
        source = node
        while source.op == "call_module" and source.all_input_nodes:
            source = source.all_input_nodes[0]
            if source.op == "call_module" and not _passes(module, source):
                found[str(node.target)] = str(source.target)
                break
    return found


def _calls(module: torch.fx.GraphModule) -> Iterator[Any]:
    for node in module.graph.nodes:
        if node.op == "call_module" and not _passes(module, node):
            yield node


def _activation_after(module: torch.fx.GraphModule, node: torch.fx.Node) -> str:
    """Return the name of the ReLU or clip that alone reads an operator's output, or nothing."""
    readers = list(node.users)
    while len(readers) == 1 and readers[0].op == "call_module":
        name = str(readers[0].target)
        if not _passes(module, readers[0]):
            return name if bounds(module.get_submodule(name)) is not None else ""
        readers = list(readers[0].users)
    return ""


def _passes(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    return isinstance(module.get_submodule(str(node.target)), _PASSING)


def _onnx_operator(module: nn.Module, rank: int) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "Conv"
    if isinstance(module, TRANSPOSED):
        return "ConvTranspose"
    if isinstance(module, nn.Linear):
        # As the exporter writes it.
        return "Gemm" if rank == 2 and module.bias is not None else "MatMul"
    name = type(module).__name__
    return _ONNX.get(name, name)


def _linear_ranks(module: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Return the number of axes of the input of each linear layer."""
    ranks: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, arguments, name=name: ranks.__setitem__(name, arguments[0].dim())
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        run(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return ranks
