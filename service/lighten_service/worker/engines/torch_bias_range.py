"""Room for biases in the 32-bit accumulators of integer kernels.

An integer convolution adds its bias in 32 bits on the grid input scale x weight scale. A channel
with small weights and a large bias, or 16-bit operands, can make that grid too fine for the bias
to fit, and ONNX Runtime then cuts it off. As in ONNX Runtime's own quantizer, the weight scale is
raised until the bias fits: in a channel so small the weights lose nothing that matters.
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantsim import QuantizationSimModel
from torch import nn

from lighten_service.worker.engines.torch_types import with_scale

# A little less than the largest 32-bit integer, for the rounding of scales to single precision.
_LARGEST_BIAS: Final = 0.999 * 2**31
# Give what they read, in another shape or place.
_MOVING: Final = (
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Unflatten,
)


@torch.no_grad()
def make_room_for_biases(
    sim: QuantizationSimModel, modules: Iterable[nn.Module] | None = None
) -> int:
    """Raise weight scales where a bias would overflow; return how many layers changed.

    Args:
        sim: calibrated.
        modules: layers to look at; all by default.
    """
    looked_at = set(sim.qmodules() if modules is None else modules)
    changed = 0
    for node in sim.model.graph.nodes:
        if node.op != "call_module":
            continue
        module = sim.model.get_submodule(node.target)
        need = _needed_grid(module) if module in looked_at else None
        scale = _input_scale(sim.model, node) if need is not None else None
        if need is not None and scale is not None:
            changed += _raise(module, need / scale)
    return changed


def _needed_grid(module: nn.Module) -> torch.Tensor | None:
    """Return the finest grid for the bias, one value a channel; None where it cannot overflow."""
    bias = getattr(module, "bias", None)
    if not isinstance(module, QuantizationMixin) or bias is None:
        return None
    if not isinstance(module.param_quantizers["weight"], AffineQuantizerBase):
        return None
    need: torch.Tensor = bias.detach().abs() / _LARGEST_BIAS
    scale = _quantizer(module).get_scale()
    if scale.numel() == 1:
        return need.max().reshape(scale.shape)
    return need.reshape(scale.shape) if need.numel() == scale.numel() else None


def _input_scale(model: torch.fx.GraphModule, node: torch.fx.Node) -> float | None:
    """Return the scale of what a layer reads; None where that is on no grid.

    Modules that only move data have no quantizer: the grid is that of what they move.
    """
    scale = _first_scale(model.get_submodule(str(node.target)).input_quantizers)
    while scale is None and node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op != "call_module":  # reshape, permute and such
            continue
        module: Any = model.get_submodule(str(node.target))
        scale = _first_scale(getattr(module, "output_quantizers", ()))
        if scale is None and not isinstance(module, _MOVING):
            return None
    return scale


def _first_scale(quantizers: Any) -> float | None:
    first = next(iter(quantizers), None)
    return float(first.get_scale().max()) if isinstance(first, AffineQuantizerBase) else None


def _raise(module: Any, needed: torch.Tensor) -> bool:
    quantizer = _quantizer(module)
    factor = (needed / quantizer.get_scale()).clamp(min=1.0)
    if bool((factor == 1.0).all()):
        return False
    module.param_quantizers["weight"] = with_scale(quantizer, quantizer.get_scale() * factor)
    return True


def _quantizer(module: Any) -> AffineQuantizerBase:
    return module.param_quantizers["weight"]
