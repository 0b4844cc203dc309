"""Gates: what was written is what was simulated, and ONNX Runtime runs it."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from lighten import v1 as pb
from lighten_service.jobs.errors import Internal
from lighten_service.worker.columns import Column
from lighten_service.worker.context import StepContext
from lighten_service.worker.data import Samples
from lighten_service.worker.evaluation import Evaluation, Reference, compare, excess_noise
from lighten_service.worker.graphs.coverage import tensors_without_grid
from lighten_service.worker.graphs.qdq import grid_differences, read_encodings, read_grids
from lighten_service.worker.integers.exact import exact_source
from lighten_service.worker.integers.proof import is_proven
from lighten_service.worker.integers.saturation import saturates
from lighten_service.worker.model import Encoding
from lighten_service.worker.runtime import GraphSession
from lighten_service.worker.samples import Head

# ONNX Runtime may be so much further from FP32 than the simulation is.
TOLERANCE_DB = 1.0
# Samples of the evaluation that ONNX Runtime repeats.
SAMPLES = 512
# Standard errors from which on more noise than that is no chance of the samples.
_SIGNIFICANT = 2.0
# One step of a grid, with room for single precision.
_ROUNDING = 1.01
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Exported:
    """Files to verify: float graph, encodings 2.0.0, and QDQ graph where it was asked for."""

    float_onnx: Path
    encodings: Path
    qdq: Path | None


@dataclass(frozen=True, slots=True)
class _Qdq:
    """What the gates need of the QDQ graph; ``signals``: outputs of floats."""

    path: Path
    grids: Mapping[str, Encoding]
    signals: Set[str]


def verify(
    context: StepContext,
    exported: Exported,
    *,
    proof: pb.IntegerProof | None,
    samples: Samples,
    fp32: Column,
    simulated: Column,
) -> list[pb.Check]:
    """Run every gate and return what was found.

    Raises:
        Internal: VERIFICATION_FAILED, with what did not hold.
    """
    checks = [_check_coverage(exported, context.quantization)]
    if exported.qdq is not None:
        qdq = _read_qdq(exported.qdq)
        checks.append(_check_grids(qdq, exported.encodings))
        runs = _Runs(qdq, samples, fp32, simulated)
        checks.append(runs.check(context.part(0.0, 0.5), qdq.path, "unoptimized"))
        checks.append(_check_optimized(context.part(0.5, 1.0), runs, proof))
    failed = [check for check in checks if not check.passed]
    if failed:
        raise Internal(
            "VERIFICATION_FAILED",
            "the exported model is not what was simulated, so nothing is published: "
            + "; ".join(f"{check.name}: {check.detail}" for check in failed),
            metadata={check.name: check.detail for check in failed},
        )
    return checks


def _check_coverage(exported: Exported, quantization: pb.QuantizationConfig) -> pb.Check:
    """Check that nothing was left out, unless the plan leaves operators or activations in float."""
    names = {entry["name"] for entry in _document(exported.encodings)["encodings"]}
    graph = onnx.load(exported.float_onnx)
    missing = tensors_without_grid(graph, names)
    asked = quantization.activations == pb.DATA_TYPE_FLOAT16 or any(
        override.leave_float for override in quantization.overrides
    )
    covered = f"{len(names)} encodings cover the operands of every convolution and matrix product"
    left = f"{len(names)} encodings; {_listed('operands in float, as the plan asks', missing)}"
    return pb.Check(
        name="encodings_cover_quantizable_tensors",
        passed=bool(names) and (asked or not missing),
        detail=(left if asked else _listed("without an encoding", missing)) if missing else covered,
        values={"encodings": len(names), "missing": len(missing)},
    )


def _read_qdq(path: Path) -> _Qdq:
    graph = onnx.load(path)
    signals = {value.name for value in graph.graph.output if _is_float(value)}
    return _Qdq(path, read_grids(graph), signals)


def _check_grids(qdq: _Qdq, encodings: Path) -> pb.Check:
    grids = qdq.grids
    weights = {name for name, grid in grids.items() if grid.is_weight}
    differences = grid_differences(grids, read_encodings(_document(encodings), weights))
    return pb.Check(
        name="qdq_matches_encodings",
        passed=not differences and bool(grids),
        detail=_listed("differ", differences)
        or f"{len(grids)} scales and zero points equal the encodings file",
        values={"grids": len(grids), "differences": len(differences)},
    )


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs the QDQ graph in ONNX Runtime, on the same samples as FP32 and the simulation."""

    qdq: _Qdq
    samples: Samples
    fp32: Column
    simulated: Column

    def check(self, context: StepContext, source: Path | onnx.ModelProto, level: str) -> pb.Check:
        """Compare ONNX Runtime with FP32 and with the simulation.

        An output passes when its SQNR to FP32 is at most 1 dB below the simulation's, or below by
        no more than other samples might change, or when it differs from the simulation by no more
        than one step of its grid: a rounding tie that falls the other way is that large, and weighs
        more than 1 dB where the grid is coarse.
        """
        found = self._record(context, source, level)
        to_fp32 = compare(found, self.fp32.recorded)
        to_simulation = compare(found, self.simulated.recorded)
        expected = compare(self.simulated.recorded, self.fp32.recorded, limit=found.count)
        excess = excess_noise(
            found, self.simulated.recorded, self.fp32.recorded, 10 ** (TOLERANCE_DB / 10)
        )
        found.close()
        values, passed = {}, True
        steps = {name: max(grid.scales) for name, grid in self.qdq.grids.items()}
        for real, simulation, ideal in zip(
            to_fp32.outputs, to_simulation.outputs, expected.outputs, strict=True
        ):
            name = real.output
            one_step = simulation.max_abs_error <= steps.get(name, 0.0) * _ROUNDING
            close = real.sqnr_db >= ideal.sqnr_db - TOLERANCE_DB or excess[name] <= _SIGNIFICANT
            passed = passed and (close or one_step or name not in self.qdq.signals)
            values[f"sqnr_to_fp32_db/{name}"] = real.sqnr_db
            values[f"simulation_sqnr_to_fp32_db/{name}"] = ideal.sqnr_db
            values[f"sqnr_to_simulation_db/{name}"] = simulation.sqnr_db
            values[f"max_abs_error_to_simulation/{name}"] = simulation.max_abs_error
        agreement = to_simulation.value(pb.METRIC_AGREEMENT)
        if agreement is not None:
            values["agreement_with_simulation"] = agreement
        return pb.Check(
            name=f"onnxruntime_{level}",
            passed=passed,
            detail=f"SQNR to FP32 {_sqnr(to_fp32):.1f} dB, the simulation's "
            f"{_sqnr(expected):.1f} dB, to the simulation {_sqnr(to_simulation):.1f} dB, "
            f"{found.count} samples",
            values=values,
        )

    def to_fp32(self, context: StepContext, source: Path, level: str) -> Evaluation:
        """Compare ONNX Runtime with FP32 alone."""
        found = self._record(context, source, level)
        evaluation = compare(found, self.fp32.recorded)
        found.close()
        return evaluation

    def _record(
        self, context: StepContext, source: Path | onnx.ModelProto, level: str
    ) -> Reference:
        runtime = GraphSession(source, optimize=level != "unoptimized")
        samples = Head(self.samples, SAMPLES)
        return Reference.record(
            runtime.predict,
            samples,
            context.scratch / "outputs" / f"runtime-{level}",
            on_batch=lambda done: context.progress(done, samples.count, "samples"),
        )


def _check_optimized(context: StepContext, runs: _Runs, proof: pb.IntegerProof | None) -> pb.Check:
    """Check the graph as users run it, in the same integer arithmetic on every CPU.

    Where this CPU saturates and the file is not proven, its twin with unsigned weights is checked,
    and what the file itself gives here stands beside.
    """
    path = runs.qdq.path
    if (proof is not None and is_proven(proof)) or not saturates():
        return runs.check(context, path, "optimized")
    check = runs.check(context.part(0.0, 0.5), exact_source(path, context.scratch), "optimized")
    here = runs.to_fp32(context.part(0.5, 1.0), path, "published")
    for output in here.outputs:
        check.values[f"published_sqnr_to_fp32_db/{output.output}"] = output.sqnr_db
    check.detail += f"; in exact arithmetic. On this CPU the file itself has {_sqnr(here):.1f} dB"
    context.warn(
        "SATURATED_ON_THIS_CPU",
        f"on the worker's CPU, which has no VNNI, the QDQ file comes to {_sqnr(here):.1f} dB of "
        f"FP32; in exact arithmetic ({check.detail.partition(';')[0]}). Use weight_range "
        "EVERY_CPU, or run it elsewhere",
    )
    return check


def _is_float(value: onnx.ValueInfoProto) -> bool:
    """Whether an output is a signal; class numbers and indices have no noise to measure."""
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _sqnr(evaluation: Evaluation) -> float:
    """Return the figure of the worst output, in dB."""
    return min(output.sqnr_db for output in evaluation.outputs)


def _document(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}"
