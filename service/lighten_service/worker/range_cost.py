"""What weights that suit every CPU cost a model, and which few layers cost it.

Measured on the deployed file, on calibration samples: the file against the same with the full range
of its weights, in exact arithmetic, and against mixtures of both.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.json_format import MessageToDict

from lighten import v1 as pb
from lighten_service.jobs.support import technique_of
from lighten_service.worker.algorithms.fidelity import sqnr_db
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Reference, evaluate
from lighten_service.worker.formats.onnx_inputs import batch_size
from lighten_service.worker.graphs.exchange import differing_weights, with_weights_of
from lighten_service.worker.graphs.save import save_single_file
from lighten_service.worker.integers.twin import unsigned_twin
from lighten_service.worker.latency import measure_latency
from lighten_service.worker.model import WorkingModel
from lighten_service.worker.runtime import GraphSession, thread_count
from lighten_service.worker.samples import Head, first_samples

# Calibration samples that files are compared on; and that one layer after the other is tried on.
SAMPLES: Final = 32
_TRIED_SAMPLES: Final = 8
# Loss from which on layers are looked for, dB.
WORTH_DB: Final = 0.5
# Layers tried one by one: those whose weights the bound changed most.
_TRIED: Final = 12
# Share of the loss that the layers named must win back.
_ENOUGH: Final = 0.6
_LATENCY_SECONDS: Final = 3.0
# Layers that a warning names; the result has all.
_NAMED: Final = 8
_FINAL: Final = frozenset({"ada_round", "sequential_mse", "reestimate_batch_norms"})


def can_measure(plan: pb.Plan) -> bool:
    """Say whether a plan has the bound, and no step that chose weights or scales within it."""
    bound = plan.quantization.weight_range == pb.WEIGHT_RANGE_EVERY_CPU
    names = {facts.name for step in plan.steps.steps if (facts := technique_of(step)) is not None}
    return bound and names.isdisjoint(_FINAL)


def measure_range_cost(
    context: StepContext, model: WorkingModel, deployed: Path, fp32: Path, calibration: Samples
) -> pb.WeightRangeReport | None:
    """Compare the deployed file with mixtures of it and its full-range form.

    Args:
        context: the layers that cost most are a warning, with the setting that wins them back.
        model: that was exported; as it was again afterwards.
        deployed: QDQ file with weights within the bound.
        fp32: file of the float model that came.
        calibration: its first samples are run.

    Returns:
        None where the bound changed no weight.

    Raises:
        Cancelled: the job shall stop.
    """
    folder = context.scratch / "range-cost"
    folder.mkdir(exist_ok=True)
    mixtures = _mixtures(context, model, deployed, folder)
    if not mixtures.tensors:
        return None
    judge = _Judge(context, Head(calibration, SAMPLES), fp32, folder)
    report = pb.WeightRangeReport(
        samples=judge.samples.count,
        every_cpu_sqnr_db=judge.sqnr_db(deployed),
        full_range_sqnr_db=judge.sqnr_db(mixtures.write(mixtures.tensors)),
    )
    if report.full_range_sqnr_db - report.every_cpu_sqnr_db > WORTH_DB:
        _advise(context, report, mixtures, judge, deployed)
    judge.close()
    return report


@dataclass
class _Mixtures:
    """Writes the deployed file with some weights at their full range, stored as UINT8."""

    bound: onnx.ModelProto
    full: onnx.ModelProto
    # Of the weights that the bound changed, those first that it changed most.
    tensors: Sequence[str]
    layers: Mapping[str, str]
    folder: Path

    def write(self, tensors: Sequence[str]) -> Path:
        path = self.folder / "mixture.onnx"
        save_single_file(with_weights_of(self.bound, self.full, tensors), path)
        return path


def _mixtures(context: StepContext, model: WorkingModel, deployed: Path, folder: Path) -> _Mixtures:
    context.check()
    quantized = model.quantized_model()
    path = folder / "full.onnx"
    bound_grids = {each.tensor: each for each in model.encodings()}
    with quantized.full_range():
        model.export_qdq(path)
        full_grids = {each.tensor: each for each in model.encodings()}
    bound, full = onnx.load(deployed), onnx.load(path)
    layers = {each.name: each.layer for each in quantized.quantizers() if each.is_weight}
    layers |= {each.weight: each.name for each in quantized.layers()}
    changed = [name for name in differing_weights(bound, full) if name in layers]
    growth = {
        name: float(np.mean(np.divide(bound_grids[name].scales, full_grids[name].scales)))
        for name in changed
    }
    changed.sort(key=lambda name: -growth[name])
    return _Mixtures(bound, unsigned_twin(full, changed), changed, layers, folder)


@dataclass
class _Judge:
    """SQNR of files to FP32 on the same samples."""

    context: StepContext
    samples: Samples
    fp32: Path
    folder: Path
    _reference: Reference = field(init=False)

    def __post_init__(self) -> None:
        self._reference = Reference.record(
            GraphSession(self.fp32).predict,
            self.samples,
            self.folder / "fp32",
            on_batch=lambda _: self.context.check(),
        )

    def sqnr_db(self, path: Path, limit: int = SAMPLES) -> float:
        found = evaluate(
            GraphSession(path).predict,
            Head(self.samples, limit),
            reference=self._reference,
            on_batch=lambda _: self.context.check(),
        )
        return sqnr_db(found)

    def close(self) -> None:
        self._reference.close()


def _advise(
    context: StepContext,
    report: pb.WeightRangeReport,
    mixtures: _Mixtures,
    judge: _Judge,
    deployed: Path,
) -> None:
    """Find the few layers that cost most, and say what storing them as UINT8 gains and takes."""
    tried = mixtures.tensors[:_TRIED]
    alone = {name: judge.sqnr_db(mixtures.write([name]), _TRIED_SAMPLES) for name in tried}
    ordered = [*sorted(tried, key=lambda name: -alone[name]), *mixtures.tensors[_TRIED:]]
    lost = report.full_range_sqnr_db - report.every_cpu_sqnr_db
    for count in _doubling(len(ordered)):
        mixed = mixtures.write(ordered[:count])
        report.uint8_sqnr_db = judge.sqnr_db(mixed)
        if report.uint8_sqnr_db >= report.every_cpu_sqnr_db + _ENOUGH * lost:
            break
    report.uint8_layers.extend(mixtures.layers[name] for name in ordered[:count])
    report.uint8_latency_ratio = _latency_ratio(context, deployed, mixed, judge.samples)
    context.warn("WEIGHT_RANGE_COSTS", _sentence(report))


def _doubling(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and the last one."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _latency_ratio(context: StepContext, deployed: Path, mixed: Path, samples: Samples) -> float:
    size = batch_size(onnx.load(deployed, load_external_data=False)) or 1
    found = measure_latency(
        {"deployed": deployed, "mixed": mixed},
        first_samples(samples, size),
        threads=thread_count(),
        budget_seconds=_LATENCY_SECONDS,
        check=context.check,
    )
    return found["mixed"].median_seconds / found["deployed"].median_seconds


def _sentence(report: pb.WeightRangeReport) -> str:
    count = len(report.uint8_layers)
    return (
        f"weights that suit every CPU bring this model to {report.every_cpu_sqnr_db:.1f} dB on "
        f"{report.samples} calibration samples, the full range to {report.full_range_sqnr_db:.1f}. "
        f"With {'1 layer' if count == 1 else f'{count} layers'} stored as UINT8 it comes to "
        f"{report.uint8_sqnr_db:.1f} dB, for {report.uint8_latency_ratio:.2f} times the latency on "
        "this CPU (others differ): add to plan.quantization.overrides "
        f"{_setting(report)}"
    )


def _setting(report: pb.WeightRangeReport) -> str:
    """Return the override that stores the layers so, or where to find them if they are many."""
    if len(report.uint8_layers) > _NAMED:
        return "uint8_weights for the layers that JobResult.weight_range.uint8_layers has"
    select = pb.LayerSelector(layers=report.uint8_layers)
    override = pb.LayerOverride(select=select, uint8_weights=True)
    return json.dumps(MessageToDict(override, preserving_proto_field_name=True))
