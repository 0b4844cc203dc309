"""Ranges of activations around the mean minimum and maximum of a sample, aimet-onnx.

The same ranges as ``torch_mean_ranges``, which tells what they are good for.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from aimet_onnx.qc_quantize_op import QcQuantizeOp

from lighten_service.worker.model import Batch


class MeanRanges:
    """Averages what quantizers observe, one sample at a time."""

    def __init__(self, quantizers: Iterable[QcQuantizeOp], reach: float) -> None:
        """Take over the statistics of quantizers that observe; frozen ones stay as they are.

        Args:
            quantizers: tied ones may come several times.
            reach: from the mean (0) to the extreme of all samples (1).
        """
        self._reach = reach
        self._quantizers = {id(q): q for q in quantizers if not q.is_encoding_frozen()}
        # (lowest, highest) value of each sample that reached a quantizer.
        self._seen: dict[int, list[tuple[float, float]]] = {key: [] for key in self._quantizers}

    def single(self, batch: Batch) -> Iterator[Batch]:
        """Yield the samples of a batch; each must be observed before the next one is taken."""
        for row in range(len(next(iter(batch.values())))):
            yield {name: values[row : row + 1] for name, values in batch.items()}
            self._take()

    def finish(self) -> None:
        """Leave to each quantizer the ends of its range as all that it has observed."""
        for key, quantizer in self._quantizers.items():
            if self._seen[key]:
                seen = np.array(self._seen[key])
                extremes = np.array([seen[:, 0].min(), seen[:, 1].max()])
                means = seen.mean(axis=0)
                ends = means + self._reach * (extremes - means)
                quantizer.update_encoding_stats(ends.astype(np.float32))

    def _take(self) -> None:
        for key, quantizer in self._quantizers.items():
            native = quantizer._tensor_quantizer
            if native.hasValidStats():
                (found,) = native.computeEncodings(False)
                self._seen[key].append((found.min, found.max))
                native.resetEncodingStats()
