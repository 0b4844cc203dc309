"""Activation equalization."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from lighten import v1 as pb
from lighten_service.techniques.base import Findings, NotApplicable
from lighten_service.techniques.calibrate import Calibrate
from lighten_service.worker import analyses
from lighten_service.worker.algorithms.channel_ranges import (
    EqualizedSet,
    equalized_sets,
    input_ranges,
    layer_scales,
)
from lighten_service.worker.algorithms.fidelity import required_calibration, sqnr_between
from lighten_service.worker.algorithms.weight_layers import choose_samples, listed_reasons
from lighten_service.worker.context import StepContext
from lighten_service.worker.graphs.channels import channel_sets
from lighten_service.worker.judge import TUNING_SAMPLES
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.rescale import ChannelScales
from lighten_service.worker.samples import Head

FORMAT_VERSION = 1
# Fewer leave channels whose largest value was not seen.
_ENOUGH_SAMPLES = 32
# A float model further from itself has lost more than quantization shall cost, dB.
_LOWEST_SQNR_DB = 30.0
_MIN_MAX = pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX)
# Shares of the step's progress at which its parts begin.
_MEASURE, _COMPARE = 0.1, 0.9


class ActivationEqualization:
    """Brings the ranges of the channels of activations closer together; weights make up for it.

    Exact but for activations with an upper bound, which samples not seen may pass; what that costs
    is measured before anything but batch norms changes.
    """

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.ActivationEqualization
    ) -> Findings:
        context.check()
        folded = model.fold_batch_norms()
        choice = _choose(context, model, parameters)
        if not choice.equalized:
            raise NotApplicable(
                f"no activation has channels to be scaled: {listed_reasons(choice.left)}"
            )
        fidelity = _fidelity(context, model, choice.scales)
        if fidelity < _LOWEST_SQNR_DB:
            raise NotApplicable(
                f"with scaled channels the float model comes to {fidelity:.1f} dB of itself, below "
                f"{_LOWEST_SQNR_DB:g}: activations pass their bound on samples beyond the first "
                f"{choice.samples}; raise max_samples, or leave the step out"
            )
        model.rescale(choice.scales)
        return _findings(choice, folded, fidelity)


@dataclass(frozen=True, slots=True)
class _Choice:
    equalized: Sequence[EqualizedSet]
    scales: Mapping[str, ChannelScales]
    # Why, by the layer that writes first.
    left: dict[str, str]
    samples: int


def _choose(
    context: StepContext, model: WorkingModel, parameters: pb.ActivationEqualization
) -> _Choice:
    """Choose scales on a copy, which is quantized so that its layers can be gone through."""
    samples = choose_samples(
        context, parameters.max_samples, _ENOUGH_SAMPLES, "ranges of channels are measured"
    )
    with closing(model.copy()) as copy:
        first = replace(context.part(0.0, _MEASURE), calibration=replace(samples, limit=1))
        Calibrate().run(first, copy, _MIN_MAX)
        quantized = copy.quantized_model()
        layers = quantized.layers()
        sets = channel_sets(copy.graph(), layers)
        ranges = input_ranges(context.part(_MEASURE, _COMPARE), quantized, samples)
        equalized, left = equalized_sets(quantized, sets, ranges, parameters.strength)
        scales = layer_scales(layers, equalized)
    return _Choice(equalized, scales, left, samples.count)


def _fidelity(
    context: StepContext, model: WorkingModel, scales: Mapping[str, ChannelScales]
) -> float:
    """Return the SQNR of the scaled float model against the model as it is, in dB.

    On more samples than ranges were measured on, where there are more.
    """
    samples = Head(required_calibration(context), TUNING_SAMPLES)
    with closing(model.copy()) as scaled:
        scaled.rescale(scales)
        return sqnr_between(context, model, scaled, samples)


def _findings(choice: _Choice, folded: int, fidelity: float) -> Findings:
    channels = sum(int((one.scales > 1).sum()) for one in choice.equalized)
    return Findings(
        f"{channels} channels of {len(choice.equalized)} groups of activations scaled",
        {
            "folded_batch_norms": folded,
            "scaled_sets": len(choice.equalized),
            "scaled_channels": channels,
            "float_sqnr_db": fidelity,
            "calibration_samples": choice.samples,
        },
        analyses.ActivationEqualization(
            format_version=FORMAT_VERSION,
            activations=[_row(one) for one in choice.equalized],
            left=choice.left,
        ),
    )


def _row(one: EqualizedSet) -> analyses.EqualizedActivation:
    return {
        "tensors": one.tensors.tensors,
        "writers": one.tensors.writers,
        "readers": one.tensors.readers,
        "before": analyses.rounded(one.ranges.tolist()),
        "after": analyses.rounded((one.ranges * one.scales[:, None]).tolist()),
    }
