"""Types and grids of AIMET's quantizers.

Quantizers are never changed here: each function returns a new one, so that whoever keeps the old
one can put it back.
"""

import copy
from typing import Any, Final

import torch
from aimet_torch.quantization.affine import AffineQuantizerBase, GroupedBlockQuantizeDequantize
from aimet_torch.quantization.base import QuantizerBase
from aimet_torch.quantization.float import FloatQuantizeDequantize
from aimet_torch.quantsim import QuantizationSimModel

from lighten import v1 as pb
from lighten_service.worker.quantized import WeightGrid

_BITS: Final = {pb.DATA_TYPE_INT4: 4, pb.DATA_TYPE_INT8: 8, pb.DATA_TYPE_INT16: 16}


def grid(quantizer: QuantizerBase | None) -> WeightGrid | None:
    """Return the grid of a calibrated quantizer, None where it has no integer grid of one scale,
    or one a channel."""
    if not isinstance(quantizer, AffineQuantizerBase) or quantizer.block_size is not None:
        return None
    if isinstance(quantizer, GroupedBlockQuantizeDequantize):
        return None
    return WeightGrid(
        scale=quantizer.get_scale().detach().clone(),
        offset=quantizer.get_offset().detach().clone(),
        low=int(quantizer.qmin),
        high=int(quantizer.qmax),
        symmetric=bool(quantizer.symmetric),
    )


def with_type(quantizer: QuantizerBase, type_: pb.DataType.ValueType) -> QuantizerBase:
    """Return a quantizer of another type, not yet calibrated for it."""
    return with_bits(quantizer, _BITS[type_])


@torch.no_grad()
def with_scale(quantizer: AffineQuantizerBase, scale: torch.Tensor) -> AffineQuantizerBase:
    """Return a quantizer with another scale, bit for bit, and the same offset."""
    changed: Any = copy.deepcopy(quantizer)
    # From a minimum and a maximum, not every scale can be had.
    changed._reparametrize_to_scale_offset()
    changed.scale.copy_(scale)
    return changed


@torch.no_grad()
def with_bits(quantizer: QuantizerBase, bits: int) -> AffineQuantizerBase:
    """Return an integer quantizer of another width, with the same range until it is calibrated."""
    changed: Any = copy.deepcopy(quantizer)
    changed._reparametrize_to_min_max()
    step, finer = 2.0**-changed.bitwidth, 2.0**-bits
    changed.bitwidth = bits
    # Outputs between 0 and 1 lie on the fixed grid 1/2**bits; calibration does not touch it.
    if not changed.is_overwrite_allowed() and bool((changed.max == 1 - step).all()):
        low = 0.0 if bool((changed.min == 0).all()) else finer - 1
        changed.set_range(
            torch.full_like(changed.min, low), torch.full_like(changed.max, 1 - finer)
        )
    return changed


@torch.no_grad()
def with_range_of(quantizer: QuantizerBase, values: torch.Tensor) -> QuantizerBase:
    """Return a quantizer whose range is chosen for these values, by its own scheme."""
    changed: Any = copy.deepcopy(quantizer)
    changed.allow_overwrite(True)
    with changed.compute_encodings():
        changed(values)
    return changed


def set_half_activations(sim: QuantizationSimModel) -> None:
    """Let every activation be rounded to IEEE half precision instead of an integer grid."""
    for module in sim.qmodules():
        for quantizers in (module.input_quantizers, module.output_quantizers):
            for index, quantizer in enumerate(quantizers):
                if quantizer is not None:
                    quantizers[index] = FloatQuantizeDequantize(dtype=torch.float16)
