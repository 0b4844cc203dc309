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


def begin_batch(sim: QuantizationSimModel) -> None:
    """Tell the quantizers that average that what comes next are other samples."""
    for module in sim.qmodules():
        for quantizer in (*module.input_quantizers, *module.output_quantizers):
            analyzer = getattr(quantizer, "encoding_analyzer", None)
            if analyzer is not None and isinstance(analyzer.observer, _MeanObserver):
                analyzer.observer.begin_batch()


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
    """Takes the place of AIMET's min-max observer. The first axis of what it sees is the batch.

    AIMET ties the quantizers around a Concat: of the tensors that one of those sees in a batch, it
    takes the range of all for each sample.
    """

    shape = ()

    def __init__(self, reach: float) -> None:
        self._reach = reach
        self._seen = _Seen()
        self._fresh = True

    def begin_batch(self) -> None:
        self._fresh = True

    @torch.no_grad()
    def collect_stats(self, values: torch.Tensor) -> _Seen:
        rows = values.reshape(len(values) if values.dim() else 1, -1)
        # Grids hold zero, so the range of each sample does, as in aimet-onnx.
        lows, highs = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
        return _Seen(lows.amin(), highs.amax(), (lows,), (highs,))

    def merge_stats(self, new: _Seen) -> None:
        lows, highs = self._seen.lows, self._seen.highs
        if not self._fresh and len(lows[-1]) == len(new.lows[0]):
            low = torch.minimum(lows[-1], new.lows[0])
            high = torch.maximum(highs[-1], new.highs[0])
            self._seen = _Seen(lows=(*lows[:-1], low), highs=(*highs[:-1], high))
        else:
            self._seen = _Seen(lows=lows + new.lows, highs=highs + new.highs)
        self._fresh = False

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
