"""Sensitivity analysis: what each part of the quantization costs."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from lighten import v1 as pb
from lighten_service.techniques.base import Findings
from lighten_service.worker.algorithms.fidelity import required_calibration
from lighten_service.worker.algorithms.sensitivity import by_layer, group_sqnr_db
from lighten_service.worker.algorithms.weight_layers import warn_if_few
from lighten_service.worker.analyses import (
    ActivationRange,
    AnalyzedLayer,
    Range,
    Sensitivity,
    WholeModel,
)
from lighten_service.worker.context import StepContext
from lighten_service.worker.metrics import OutputSums
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.quantized import Layer, QuantizedModel, Quantizer
from lighten_service.worker.samples import Head

FORMAT_VERSION: Final = 1
# Layers that stand in the result itself; the analysis has all.
_WORST: Final = 20
_NAMED: Final = 3
# A walk holds the live tensors of all its samples.
_WALKED: Final = 32
_ENOUGH_SAMPLES: Final = 16


class AnalyzeSensitivity:
    """Measures the model with parts of its quantizers on. Findings.data is an
    `analyses.Sensitivity`; the model stays as it is."""

    def run(
        self, context: StepContext, model: WorkingModel, parameters: pb.AnalyzeSensitivity
    ) -> Findings:
        samples = Head(required_calibration(context), parameters.max_samples)
        warn_if_few(
            context,
            samples,
            _ENOUGH_SAMPLES,
            "the sensitivity of layers was measured",
            "so that close ones may stand in another order for others",
        )
        quantized = model.quantized_model()
        groups = by_layer(quantized.quantizers())
        whole, alone = _measure(context.part(0.0, 0.8), quantized, groups, samples.count)
        walked = Head(samples, _WALKED)
        outputs = _output_db(context.part(0.8, 1.0), quantized, walked)
        ranges = _channel_ranges(quantized)
        layers = [
            _row(group, decibels, outputs, ranges)
            for group, decibels in zip(groups, alone, strict=True)
        ]
        found = Sensitivity(
            format_version=FORMAT_VERSION,
            samples=samples.count,
            output_samples=walked.count,
            model=whole,
            layers=layers,
            activations=_activations(model),
        )
        return Findings(_summary(whole, layers), _values(whole, layers), found)


def _measure(
    context: StepContext,
    model: QuantizedModel,
    groups: Sequence[Sequence[Quantizer]],
    limit: int,
) -> tuple[WholeModel, list[float]]:
    """Return the figures of the whole model, and of each group alone."""
    quantizers = [quantizer for group in groups for quantizer in group]
    weights = [quantizer.name for quantizer in quantizers if quantizer.is_weight]
    activations = [quantizer.name for quantizer in quantizers if not quantizer.is_weight]
    single = [[quantizer.name for quantizer in group] for group in groups]
    parts = [[*weights, *activations], weights, activations, *single]
    both, of_weights, of_activations, *alone = group_sqnr_db(context, model, parts, limit)
    whole = WholeModel(all_db=both, weights_db=of_weights, activations_db=of_activations)
    return whole, alone


def _output_db(context: StepContext, model: QuantizedModel, samples: Head) -> dict[str, float]:
    """Return the SQNR of each layer's own output, by layer."""
    total = len(model.layers())
    found = {}
    batches = (batch.inputs for batch in samples.batches())
    visits = model.walk(batches, quantize_activations=True, check=context.check)
    for done, visit in enumerate(visits):
        context.progress(done, total, "layers")
        grid = model.weight_grid(visit.layer)
        if grid is None:
            continue
        weight, bias = grid.round(model.weight(visit.layer)), model.bias(visit.layer)
        sums = OutputSums()
        for batch, inputs in enumerate(visit.inputs):
            context.check()
            own = visit.layer.kernel.apply(inputs, weight, bias)
            sums.add(visit.float_output(batch).cpu().numpy(), own.cpu().numpy())
        found[visit.layer.name] = sums.result(visit.layer.name).sqnr_db
    return found


def _channel_ranges(model: QuantizedModel) -> dict[str, list[Range]]:
    return {layer.name: _ranges(model.weight(layer), layer) for layer in model.layers()}


def _ranges(weight: torch.Tensor, layer: Layer) -> list[Range]:
    channels = weight.detach().movedim(layer.kernel.channel_axis, 0).flatten(1)
    return torch.stack([channels.amin(1), channels.amax(1)], dim=1).tolist()


def _row(
    group: Sequence[Quantizer],
    alone: float,
    outputs: Mapping[str, float],
    ranges: Mapping[str, list[Range]],
) -> AnalyzedLayer:
    name = group[0].layer
    row = AnalyzedLayer(
        layer=name, op=group[0].op, alone_db=alone, channel_ranges=ranges.get(name, [])
    )
    weights = [quantizer.bits for quantizer in group if quantizer.is_weight]
    if weights:
        row["weight_bits"] = weights[0]
    if name in outputs:
        row["output_db"] = outputs[name]
    return row


def _activations(model: WorkingModel) -> list[ActivationRange]:
    return [
        ActivationRange(tensor=each.tensor, bits=each.bits, range=[*each.bounds])
        for each in model.encodings()
        if not each.is_weight
    ]


def _worst(layers: Sequence[AnalyzedLayer], count: int) -> list[AnalyzedLayer]:
    return sorted(layers, key=lambda layer: layer["alone_db"])[:count]


def _summary(whole: WholeModel, layers: Sequence[AnalyzedLayer]) -> str:
    named = ", ".join(
        f"{each['layer']} {each['alone_db']:.1f} dB" for each in _worst(layers, _NAMED)
    )
    return (
        f"weights alone {whole['weights_db']:.1f} dB, activations alone "
        f"{whole['activations_db']:.1f} dB; most sensitive: {named}"
    )


def _values(whole: WholeModel, layers: Sequence[AnalyzedLayer]) -> dict[str, float]:
    return {
        "all_sqnr_db": whole["all_db"],
        "weights_sqnr_db": whole["weights_db"],
        "activations_sqnr_db": whole["activations_db"],
        **{f"layer_sqnr_db:{each['layer']}": each["alone_db"] for each in _worst(layers, _WORST)},
    }
