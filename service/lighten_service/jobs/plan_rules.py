"""Rules of a plan that need no model: order, engines, needs, types."""

from collections import Counter
from collections.abc import Iterable, Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.support import (
    ENGINES,
    HARDWARE_CONFIGS,
    WIDE_TYPES_OPSET,
    TechniqueFacts,
    technique_of,
    type_support,
)

# Metrics of events stand in columns named so, or after a step.
_COLUMNS = frozenset({"baseline", "naive", "optimized"})
_SUPPORTED = {(item.engine, item.weights, item.activations): item for item in type_support()}


def check_plan(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with ``spec.plan`` and the outputs that it is to have."""
    plan = spec.plan
    if plan.WhichOneof("how") is None:
        yield Violation("plan.steps", "is required: name at least the step `calibrate`")
        return
    yield from _check_steps(spec)
    yield from _check_types(spec)
    name = plan.quantization.hardware_config
    if name and name not in HARDWARE_CONFIGS:
        yield Violation(
            "plan.quantization.hardware_config",
            f'there is no configuration "{name}"; use one of {", ".join(HARDWARE_CONFIGS)}, or '
            "leave it empty for AIMET's default",
        )


def _check_steps(spec: pb.JobSpec) -> Iterator[Violation]:
    steps = spec.plan.steps.steps
    known: list[TechniqueFacts] = []
    for index, step in enumerate(steps):
        path = f"plan.steps.steps[{index}]"
        technique = technique_of(step)
        if technique is None:
            yield Violation(path, "names no technique; GetCapabilities lists them")
            continue
        known.append(technique)
        yield from _check_technique(spec, technique, f"{path}.{technique.name}")
        yield from _check_parameters(step, f"{path}.{technique.name}")
    yield from _check_ids(steps)
    if len(known) == len(steps) > 0:
        yield from _check_order(known)


def _check_technique(spec: pb.JobSpec, technique: TechniqueFacts, path: str) -> Iterator[Violation]:
    engine = ENGINES.get(spec.model.format)
    if engine is not None and engine not in technique.info.engines:
        names = ", ".join(pb.Engine.Name(item) for item in technique.info.engines)
        yield Violation(path, f"runs on {names} alone, and the model's format has another engine")
    if pb.NEED_CALIBRATION in technique.info.needs and not spec.HasField("calibration"):
        yield Violation("calibration", f"is required: {technique.name} chooses ranges from data")
    if pb.NEED_LABELS in technique.info.needs and not spec.HasField("evaluation"):
        yield Violation("evaluation", f"is required, with labels: {technique.name} needs them")


def _check_parameters(step: pb.Step, path: str) -> Iterator[Violation]:
    calibrate = step.calibrate
    if calibrate.HasField("percentile") and calibrate.scheme != pb.RANGE_SCHEME_PERCENTILE:
        yield Violation(
            f"{path}.percentile",
            "belongs to scheme RANGE_SCHEME_PERCENTILE; set that, or leave it out",
        )


def _check_ids(steps: Iterable[pb.Step]) -> Iterator[Violation]:
    first: dict[str, int] = {}
    for index, step in enumerate(steps):
        if step.id in _COLUMNS:
            yield Violation(
                f"plan.steps.steps[{index}].id",
                f'"{step.id}" is the name of a column of the result; take another',
            )
        if step.id and first.setdefault(step.id, index) != index:
            yield Violation(
                f"plan.steps.steps[{index}].id",
                f'"{step.id}" is the id of steps[{first[step.id]}] too; ids must differ',
            )


def _check_order(techniques: list[TechniqueFacts]) -> Iterator[Violation]:
    counts = Counter(technique.name for technique in techniques)
    for technique in {item.name: item for item in techniques}.values():
        if technique.info.once and counts[technique.name] > 1:
            yield Violation("plan.steps.steps", f"{technique.name} may stand in a plan only once")
    if not counts["calibrate"]:
        yield Violation("plan.steps.steps", "has no step `calibrate`; a plan needs exactly one")
    phases = [technique.info.phase for technique in techniques]
    if phases != sorted(phases):
        right = sorted(techniques, key=lambda technique: technique.info.phase)
        order = ", ".join(technique.name for technique in right)
        yield Violation("plan.steps.steps", f"cannot work in this order; this one can: {order}")


def _check_types(spec: pb.JobSpec) -> Iterator[Violation]:
    """Check against what the defaults will be, which `resolve` fills in later."""
    quantization, outputs = spec.plan.quantization, spec.outputs
    weights = quantization.weights or pb.DATA_TYPE_INT8
    activations = quantization.activations or pb.DATA_TYPE_INT8
    engine = ENGINES.get(spec.model.format)
    if engine is None or (outputs.HasField("qdq_onnx") and not outputs.qdq_onnx):
        return
    support = _SUPPORTED.get((engine, weights, activations))
    if support is None or not support.qdq_onnx:
        yield Violation(
            "plan.quantization.activations",
            f"{pb.DataType.Name(activations)} cannot be written as QDQ ONNX that runs: use "
            "DATA_TYPE_INT8 or DATA_TYPE_INT16, or set outputs.qdq_onnx to false",
        )
    wide = {weights, activations} - {pb.DATA_TYPE_INT8}
    if wide and outputs.HasField("opset") and outputs.opset < WIDE_TYPES_OPSET:
        yield Violation(
            "outputs.opset",
            f"must be at least {WIDE_TYPES_OPSET} for {pb.DataType.Name(min(wide))}, and is "
            f"{outputs.opset}",
        )
