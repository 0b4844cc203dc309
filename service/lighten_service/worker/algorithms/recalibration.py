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
    given = 0

    def batches() -> Iterator[Batch]:
        nonlocal given
        given = 0
        for batch in samples.batches():
            given += batch.size
            yield batch.inputs

    quantized.calibrate_activations(
        batches,
        on_batch=lambda _: context.progress(given, max(samples.count, given), "samples"),
    )
