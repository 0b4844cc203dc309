"""Post-training quantization with ranges chosen from calibration data."""

from collections.abc import Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.techniques.base import Findings
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.model import Batch, WorkingModel


class Calibrate:
    """Inserts quantizers and chooses their ranges in one pass over the calibration data."""

    def run(self, context: StepContext, model: WorkingModel, parameters: pb.Calibrate) -> Findings:
        samples = context.calibration
        if samples is None:
            raise FailedPrecondition(
                "MISSING_CALIBRATION_DATA",
                "calibration needs data; set calibration",
                field="calibration",
            )
        total = samples.count
        progress = _Progress(context, samples)
        counts = model.calibrate(
            context.quantization, parameters, progress.batches, on_batch=progress.on_batch
        )
        weights, activations = counts["weight_quantizers"], counts["activation_quantizers"]
        summary = (
            f"{weights:.0f} weight and {activations:.0f} activation quantizers calibrated on "
            f"{total} samples"
        )
        return Findings(summary, {**counts, "calibration_samples": total})


class _Progress:
    """Counts samples as they go into the model and come out of it."""

    def __init__(self, context: StepContext, samples: Samples) -> None:
        self._context = context
        self._samples = samples
        self._given = 0

    def batches(self) -> Iterator[Batch]:
        self._given = 0
        for batch in self._samples.batches():
            self._given += batch.size
            yield batch.inputs

    def on_batch(self, done: int) -> None:  # noqa: ARG002
        self._context.progress(self._given, max(self._samples.count, self._given), "samples")
