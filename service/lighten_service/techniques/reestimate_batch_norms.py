"""Batch-norm re-estimation."""

from collections.abc import Sequence

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.batch_norms import Reestimated, reestimate
from lighten_service.worker.algorithms.fidelity import required_calibration, sqnr_db, tune
from lighten_service.worker.algorithms.recalibration import recalibrate
from lighten_service.worker.algorithms.weight_layers import listed_reasons, warn_if_few
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.samples import Head

FORMAT_VERSION = 1
# The original statistics are those of a training set; fewer samples are a poor likeness of it.
_ENOUGH_SAMPLES = 128


class ReestimateBatchNorms:
    """Gives outputs of layers the mean and deviation that their batch norms gave them in FP32.

    The samples must be like those of the training, or the statistics of another distribution are
    forced upon them: SQNR before and after is measured, and a loss warned about.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.ReestimateBatchNorms
    ) -> Findings:
        calibration = required_calibration(context)
        samples = Head(calibration, parameters.max_samples)
        quantized = model.quantized_model()
        if not quantized.moments():
            raise NotApplicable("no batch norm was folded into any layer of the model")
        before = sqnr_db(tune(context, model, samples.count))
        layers = list(reestimate(context.part(0.1, 0.7), quantized, samples))
        if all(layer.ratio is None for layer in layers):
            raise NotApplicable(
                f"no layer with a folded batch norm can be changed: {_reasons(layers)}; "
                "weight_granularity PER_CHANNEL gives each channel a scale"
            )
        recalibrate(context.part(0.7, 0.9), quantized, calibration)
        after = sqnr_db(tune(context, model, samples.count))
        _warn(context, samples, before, after)
        return _findings(layers, samples.count, before, after)


def _warn(context: StepContext, samples: Samples, before: float, after: float) -> None:
    warn_if_few(
        context,
        samples,
        _ENOUGH_SAMPLES,
        "statistics of batch norms were measured",
        "a poor likeness of the training's",
    )
    if after < before:
        context.warn(
            "STEP_LOST_FIDELITY",
            f"the SQNR of the worst output fell from {before:.1f} to {after:.1f} dB on "
            "calibration samples: these are unlike what the batch norms were trained on, or "
            "quantization had not moved the statistics; leave the step out",
        )


def _findings(layers: Sequence[Reestimated], samples: int, before: float, after: float) -> Findings:
    left = [layer for layer in layers if layer.ratio is None]
    changed = len(layers) - len(left)
    summary = f"batch-norm statistics of {changed} layers restored; SQNR {before:.1f} to "
    summary += f"{after:.1f} dB"
    if left:
        summary += f"; {len(left)} left: {_reasons(left)}"
    values = {
        "reestimated_layers": changed,
        "left_layers": len(left),
        "left_channels": sum(layer.left_channels for layer in layers),
        "calibration_samples": samples,
        "sqnr_db_before": before,
        "sqnr_db_after": after,
    }
    rows = [_row(layer) for layer in layers]
    data = analyses.Reestimation(format_version=FORMAT_VERSION, layers=rows)
    return Findings(summary, values, data)


def _reasons(left: Sequence[Reestimated]) -> str:
    return listed_reasons({layer.layer: layer.reason for layer in left})


def _row(layer: Reestimated) -> analyses.ReestimatedLayer:
    if layer.ratio is None:
        return {"layer": layer.layer, "left": layer.reason}
    return {
        "layer": layer.layer,
        "ratio_range": [float(layer.ratio.min()), float(layer.ratio.max())],
        "left_channels": layer.left_channels,
    }
