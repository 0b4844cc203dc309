"""What the quantization of each layer alone costs."""

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.context import StepContext
from lighten_service.worker.metrics import OutputSums
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import QuantizedModel, Quantizer
from lighten_service.worker.samples import Head


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """An operator (or an input of the model), its quantizers, and the SQNR of the worst output, in
    dB against the model in float, with these quantizers alone switched on."""

    layer: str
    # ONNX operator; empty for an input of the model.
    op: str
    quantizers: tuple[Quantizer, ...]
    sqnr_db: float


def layer_sensitivities(
    context: StepContext, model: WorkingModel, limit: int
) -> tuple[LayerSensitivity, ...]:
    """Measure every layer that has a quantizer, in execution order; the model stays as it is.

    Raises:
        FailedPrecondition: NOT_QUANTIZED, MISSING_CALIBRATION_DATA.
        Cancelled: the job shall stop.
    """
    quantized = model.quantized_model()
    groups = by_layer(quantized.quantizers())
    names = [[quantizer.name for quantizer in group] for group in groups]
    found = group_sqnr_db(context, quantized, names, limit)
    return tuple(
        LayerSensitivity(group[0].layer, group[0].op, group, alone)
        for group, alone in zip(groups, found, strict=True)
    )


def group_sqnr_db(
    context: StepContext, model: QuantizedModel, groups: Sequence[Collection[str]], limit: int
) -> list[float]:
    """Return the SQNR of the worst output, in dB, with each group of quantizers alone switched on.

    Against the same model with none, on at most ``limit`` calibration samples.

    Args:
        groups: names of quantizers, at least one a group.

    Raises:
        FailedPrecondition: MISSING_CALIBRATION_DATA.
        Cancelled: the job shall stop; looked at before each probe.
    """
    samples = Head(required_calibration(context), limit)
    sums: list[list[OutputSums]] = [[] for _ in groups]
    total, done = samples.count * len(groups), 0
    with closing(
        model.probe((b.inputs for b in samples.batches()), groups, check=context.check)
    ) as probes:
        for probe in probes:
            own = sums[probe.group]
            own.extend(OutputSums() for _ in probe.outputs[len(own) :])
            for each, expected, found in zip(own, probe.float_outputs, probe.outputs, strict=True):
                each.add(expected, found)
            done += len(probe.outputs[0])
            context.progress(done, total, "samples")
    return [min(each.result("").sqnr_db for each in own) for own in sums]


def by_layer(quantizers: Sequence[Quantizer]) -> tuple[tuple[Quantizer, ...], ...]:
    """Group quantizers by the operator that they belong to, in the order of their first ones."""
    groups: dict[str, list[Quantizer]] = {}
    for quantizer in quantizers:
        groups.setdefault(quantizer.layer, []).append(quantizer)
    return tuple(tuple(group) for group in groups.values())


def most_sensitive_first(found: Sequence[LayerSensitivity]) -> tuple[LayerSensitivity, ...]:
    """Sort by SQNR, the lowest first; the order is kept among equals."""
    return tuple(sorted(found, key=lambda one: one.sqnr_db))
