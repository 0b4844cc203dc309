"""Bias correction."""

from collections.abc import Sequence

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.bias_correction import (
    Correction,
    correct_analytically,
    correct_empirically,
)
from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.algorithms.weight_layers import listed_reasons, warn_if_few
from lighten_service.worker.context import StepContext
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.samples import Head

FORMAT_VERSION = 1
# Fewer measure the samples more than the shift that they have in common.
_ENOUGH_SAMPLES = 32


class BiasCorrection:
    """Adds to each bias what quantization shifts the mean of the layer's output by.

    Ranges of activations stay: the corrected means are those that they were chosen for.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.BiasCorrection
    ) -> Findings:
        if parameters.method == pb.BIAS_CORRECTION_METHOD_ANALYTIC:
            return _analytic(context, model)
        return _empirical(context, model, parameters)


def _empirical(
    context: StepContext, model: WorkingModel, parameters: pb.BiasCorrection
) -> Findings:
    samples = Head(required_calibration(context), parameters.max_samples)
    both = parameters.method != pb.BIAS_CORRECTION_METHOD_EMPIRICAL_WEIGHTS
    corrections = list(
        correct_empirically(context, model.quantized_model(), samples, quantize_activations=both)
    )
    warn_if_few(
        context,
        samples,
        _ENOUGH_SAMPLES,
        "mean outputs were measured",
        "which says more about these than about others",
    )
    return _findings(corrections, {"calibration_samples": samples.count})


def _analytic(context: StepContext, model: WorkingModel) -> Findings:
    if not model.quantized_model().moments():
        raise NotApplicable(
            "no batch norm was folded into any layer, so no mean activation is known without "
            "data; use the empirical method"
        )
    return _findings(list(correct_analytically(context, model)), {})


def _findings(corrections: Sequence[Correction], values: dict[str, float]) -> Findings:
    left = [correction for correction in corrections if correction.shift is None]
    corrected = len(corrections) - len(left)
    if not corrected:
        why = _reasons(left) or "none with a constant weight sees any data"
        raise NotApplicable(f"no convolution or linear layer can be corrected: {why}")
    summary = f"biases of {corrected} layers corrected"
    if left:
        summary += f"; {len(left)} left: {_reasons(left)}"
    return Findings(
        summary,
        {"corrected_layers": corrected, "left_layers": len(left), **values},
        analyses.BiasCorrection(
            format_version=FORMAT_VERSION, layers=[_row(one) for one in corrections]
        ),
    )


def _reasons(left: Sequence[Correction]) -> str:
    return listed_reasons({correction.layer: correction.reason for correction in left})


def _row(correction: Correction) -> analyses.BiasCorrectionLayer:
    if correction.shift is None:
        return {"layer": correction.layer, "left": correction.reason}
    return {"layer": correction.layer, "shift_rms": float(correction.shift.square().mean().sqrt())}
