"""Post-training quantization with ranges chosen from calibration data."""

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.techniques.base import Findings
from lighten_service.worker.algorithms.recalibration import Feed
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel


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
        feed = Feed(context, samples)
        counts = model.calibrate(
            context.quantization, parameters, feed.batches, on_batch=feed.on_batch
        )
        weights, activations = counts["weight_quantizers"], counts["activation_quantizers"]
        summary = (
            f"{weights:.0f} weight and {activations:.0f} activation quantizers calibrated on "
            f"{total} samples"
        )
        return Findings(summary, {**counts, "calibration_samples": total})
