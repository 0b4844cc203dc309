"""Room for biases in the 32-bit accumulators of integer kernels.

An integer convolution adds its bias in 32 bits on the grid input scale x weight scale. A channel
with small weights and a large bias, or 16-bit operands, can make that grid too fine for the bias
to fit, and ONNX Runtime then cuts it off. As in ONNX Runtime's own quantizer, the weight scale is
raised until the bias fits: in a channel so small the weights lose nothing that matters.
"""

from typing import Any, Final

import torch
from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantsim import QuantizationSimModel

from lighten_service.worker.engines.torch_prepare import Inputs, run

# A little less than the largest 32-bit integer, for the rounding of scales to single precision.
_LARGEST_BIAS: Final = 0.999 * 2**31


@torch.no_grad()
def make_room_for_biases(sim: QuantizationSimModel, inputs: Inputs) -> int:
    """Raise weight scales where a bias would overflow; return how many layers changed.

    Args:
        sim: calibrated.
        inputs: one sample.
    """
    needs = {
        module: need for module in sim.qmodules() if (need := _needed_grid(module)) is not None
    }
    if not needs:
        return 0
    # Running the model tells the scale of each layer's input. Usually no layer comes near.
    finest = min((float(scale.min()) for scale in _activation_scales(sim)), default=0.0)
    if all(bool((need <= finest * _weight_scale(module)).all()) for module, need in needs.items()):
        return 0
    scales = _input_scales(sim, list(needs), inputs)
    return sum(_raise(module, needs[module] / scale) for module, scale in scales.items())


def _needed_grid(module: torch.nn.Module) -> torch.Tensor | None:
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


def _activation_scales(sim: QuantizationSimModel) -> list[torch.Tensor]:
    return [
        quantizer.get_scale()
        for module in sim.qmodules()
        for quantizer in (*module.input_quantizers, *module.output_quantizers)
        if isinstance(quantizer, AffineQuantizerBase)
    ]


def _input_scales(
    sim: QuantizationSimModel, modules: list[torch.nn.Module], inputs: Inputs
) -> dict[torch.nn.Module, float]:
    """Return the scale of the first input of each module that has a quantized one."""
    found: dict[torch.nn.Module, float] = {}

    def note(module: Any, arguments: tuple[object, ...], _: object) -> None:
        quantizer = module.input_quantizers[0]
        encoding = getattr(arguments[0], "encoding", None)
        if quantizer is not None:
            found[module] = float(quantizer.get_scale().max())
        elif encoding is not None:
            found[module] = float(encoding.scale.max())

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        run(sim.model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _raise(module: torch.nn.Module, needed: torch.Tensor) -> bool:
    quantizer = _quantizer(module)
    factor = (needed / quantizer.get_scale()).clamp(min=1.0)
    if bool((factor == 1.0).all()):
        return False
    quantizer.set_range(quantizer.get_min() * factor, quantizer.get_max() * factor)
    return True


def _weight_scale(module: torch.nn.Module) -> torch.Tensor:
    scale: torch.Tensor = _quantizer(module).get_scale()
    return scale


def _quantizer(module: Any) -> AffineQuantizerBase:
    return module.param_quantizers["weight"]
