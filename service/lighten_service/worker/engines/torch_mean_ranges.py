"""Ranges of activations around the mean minimum and maximum of a sample, aimet-torch.

A min-max range covers the one largest value of the whole calibration set. The mean over samples is
little moved by it, and leaves finer steps to all others. NNCF has these estimators as ``mean_min``
and ``mean_max``; Jacob et al. 2018 (section 3.1) train with a moving average of batches.
"""

from dataclasses import dataclass

import torch
from aimet_torch.quantization.affine import AffineQuantizerBase
from aimet_torch.quantization.encoding_analyzer import MinMaxEncodingAnalyzer
from aimet_torch.quantsim import QuantizationSimModel


def average_activations(sim: QuantizationSimModel, reach: float) -> None:
    """Make every quantizer of an activation average over samples.

    Args:
        sim: its quantizers observe anew whenever ranges are chosen.
        reach: from the mean (0) to the extreme of all samples (1).
    """
    for module in sim.qmodules():
        for quantizer in (*module.input_quantizers, *module.output_quantizers):
            if isinstance(quantizer, AffineQuantizerBase) and quantizer.shape == ():
                analyzer = MinMaxEncodingAnalyzer(())
                analyzer.observer = _MeanObserver(reach)
                quantizer.encoding_analyzer = analyzer


@dataclass(frozen=True, slots=True)
class _Range:
    """What AIMET's min-max analyzer reads."""

    min: torch.Tensor | None = None
    max: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Seen(_Range):
    """The range of a batch, and those of its samples, shape (n,)."""

    lows: tuple[torch.Tensor, ...] = ()
    highs: tuple[torch.Tensor, ...] = ()


class _MeanObserver:
    """Takes the place of AIMET's min-max observer. The first axis of what it sees is the batch."""

    shape = ()

    def __init__(self, reach: float) -> None:
        self._reach = reach
        self._seen = _Seen()

    @torch.no_grad()
    def collect_stats(self, values: torch.Tensor) -> _Seen:
        rows = values.reshape(len(values) if values.dim() else 1, -1)
        lows, highs = rows.amin(1), rows.amax(1)
        return _Seen(lows.amin(), highs.amax(), (lows,), (highs,))

    def merge_stats(self, new: _Seen) -> None:
        old = self._seen
        self._seen = _Seen(lows=old.lows + new.lows, highs=old.highs + new.highs)

    def reset_stats(self) -> None:
        self._seen = _Seen()

    @torch.no_grad()
    def get_stats(self) -> _Range:
        if not self._seen.lows:
            return _Range()
        lows, highs = torch.cat(self._seen.lows), torch.cat(self._seen.highs)
        return _Range(
            torch.lerp(lows.mean(), lows.amin(), self._reach),
            torch.lerp(highs.mean(), highs.amax(), self._reach),
        )
