"""AIMET's quantizers as grids, and their state to come back to."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from aimet_onnx.common import libpymo
from aimet_onnx.common.defs import EncodingType, qtype
from aimet_onnx.qc_quantize_op import QcQuantizeOp

from lighten_service.worker.engines.onnx_types import is_half, is_integer, set_type
from lighten_service.worker.quantized import WeightGrid

_ONE_SCALE_A_CHANNEL = (EncodingType.PER_TENSOR, EncodingType.PER_CHANNEL)


def read_grid(quantizer: QcQuantizeOp, shape: tuple[int, ...], device: str) -> WeightGrid | None:
    """Return the grid of a weight, in the layout of the graph; None where it is another kind.

    Args:
        quantizer: switched on or off.
        shape: of the weight as the graph stores it.
        device: where the tensors go.
    """
    if not quantizer.enabled or not is_integer(quantizer) or not quantizer.is_initialized():
        return None
    if quantizer._encoding_type() not in _ONE_SCALE_A_CHANNEL:
        return None
    encodings = quantizer.get_encodings()
    along = [1] * len(shape)
    if len(encodings) > 1:
        along[quantizer.quant_info.channelAxis] = len(encodings)
    steps = 2 ** encodings[0].bw - 1
    offset = torch.tensor([e.offset for e in encodings], dtype=torch.float32)
    low = 0
    symmetric = quantizer.use_symmetric_encodings
    if symmetric:
        # The same for every channel; AIMET counts integers from zero.
        low = int(offset[0])
        offset = offset - low
    scale = torch.tensor([e.delta for e in encodings], dtype=torch.float32)
    return WeightGrid(
        scale=scale.reshape(along).to(device),
        offset=offset.reshape(along).to(device),
        low=low,
        high=low + steps - (1 if symmetric and quantizer.use_strict_symmetric else 0),
        symmetric=symmetric,
    )


def load_scales(quantizer: QcQuantizeOp, scale: torch.Tensor) -> None:
    """Give each channel another scale; offsets stay.

    Args:
        quantizer: of a weight, with a grid that `read_grid` returns.
        scale: positive, one value a channel, in any shape.
    """
    encodings = quantizer.get_encodings()
    for encoding, value in zip(encodings, scale.flatten().tolist(), strict=True):
        steps = round((encoding.max - encoding.min) / encoding.delta)
        encoding.delta = value
        encoding.min = value * encoding.offset
        encoding.max = encoding.min + value * steps
    quantizer.load_encodings(encodings)


@dataclass(frozen=True, slots=True)
class QuantizerState:
    """Type, range and switch of one of AIMET's quantizers."""

    enabled: bool
    precision: qtype
    # (bits, scale, offset, smallest, largest value) of each channel; empty before calibration.
    encodings: tuple[tuple[int, float, float, float, float], ...]

    @classmethod
    def of(cls, quantizer: QcQuantizeOp) -> Self:
        found: list[Any] = quantizer.get_encodings() or []
        return cls(
            quantizer.enabled,
            quantizer.precision(),
            tuple((e.bw, e.delta, e.offset, e.min, e.max) for e in found),
        )

    def load(self, quantizer: QcQuantizeOp) -> None:
        """Bring a quantizer back to this state."""
        set_type(quantizer, self.precision)
        quantizer.enabled = self.enabled
        if self.encodings:
            # AIMET's load_encodings would round the scales of low-power blocks a second time.
            encodings = [_encoding(*values) for values in self.encodings]
            quantizer._tensor_quantizer.setEncodings(encodings)
            quantizer.op_mode = libpymo.TensorQuantizerOpMode.quantizeDequantize
        elif is_half(quantizer):
            quantizer.op_mode = libpymo.TensorQuantizerOpMode.quantizeDequantize
        else:
            quantizer.reset_encoding_stats()


def _encoding(
    bits: int, scale: float, offset: float, smallest: float, largest: float
) -> libpymo.TfEncoding:
    encoding = libpymo.TfEncoding()
    encoding.bw, encoding.delta, encoding.offset = bits, scale, offset
    encoding.min, encoding.max = smallest, largest
    return encoding
