"""Ranges of activations chosen anew, after weights or widths have changed."""

from collections.abc import Iterator

from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.model import Batch
from lighten_service.worker.quantized import QuantizedModel


def recalibrate(context: StepContext, quantized: QuantizedModel, samples: Samples) -> None:
    """Choose the ranges of all activations from all samples, with the calibration's scheme.

    Raises:
        FailedPrecondition: as `WorkingModel.calibrate`.
        Cancelled: the job shall stop; looked at after each batch.
    """
    feed = Feed(context, samples)
    quantized.calibrate_activations(feed.batches, on_batch=feed.on_batch)


class Feed:
    """Gives samples to a calibration, and reports progress by those that it has taken."""

    def __init__(self, context: StepContext, samples: Samples) -> None:
        self._context = context
        self._samples = samples
        self._given = 0

    def batches(self) -> Iterator[Batch]:
        """Yield the inputs of all samples, from the first."""
        self._given = 0
        for batch in self._samples.batches():
            self._given += batch.size
            yield batch.inputs

    def on_batch(self, done: int) -> None:  # noqa: ARG002
        """Call it when a batch was taken. Raises Cancelled."""
        self._context.progress(self._given, max(self._samples.count, self._given), "samples")
