"""What was asked, and what came of it in a few words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from lighten import v1 as pb
from lighten.cli.render import text
from lighten.spec import dump_spec
from lighten_service.jobs.support import technique_of
from lighten_service.worker.report import words

# From here on little is left to win back, and below it much is lost.
_GOOD_AGREEMENT, _POOR_AGREEMENT = 0.97, 0.85
_GOOD_SQNR_DB, _POOR_SQNR_DB = 30.0, 12.0
_HEADLINES = {
    "good": "Close to FP32",
    "fair": "Some loss against FP32",
    "poor": "Far from FP32",
    "unknown": "Not compared",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``level``: good, fair, poor or unknown."""

    level: str
    headline: str
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """``facts``: (name, value). ``plan``: (step, what it does, its parameters)."""

    facts: Sequence[tuple[str, str]]
    plan: Sequence[tuple[str, str, str]]
    yaml: str


def verdict(spec: pb.JobSpec, result: pb.JobResult) -> Verdict:
    level = _level(result.optimized)
    headline = _HEADLINES[level]
    if spec.plan.HasField("goal") and _has_target(spec.plan.goal):
        headline = "Goal met" if result.goal.met else f"Goal missed. {headline}"
        level = "good" if result.goal.met else level
    failed = sum(not check.passed for check in result.checks)
    if failed:
        level, headline = "poor", f"{words.plural(failed, 'check')} failed. {headline}"
    sentences = [*_quality(result), *_size(result), *_speed(result)]
    return Verdict(level, headline, sentences)


def asked(spec: pb.JobSpec) -> Asked:
    facts = [*_model(spec), *_data(spec), *_quantization(spec), *_goal(spec.plan)]
    plan = [_step(step) for step in spec.plan.steps.steps]
    return Asked(facts, plan, dump_spec(spec))


def _level(report: pb.ModelReport) -> str:
    agreement = words.find(report.metrics, pb.METRIC_AGREEMENT)
    sqnr = words.find(report.metrics, pb.METRIC_SQNR)
    if agreement is None and sqnr is None:
        return "unknown"
    if agreement is not None:
        good, poor = agreement.value >= _GOOD_AGREEMENT, agreement.value < _POOR_AGREEMENT
    else:
        good, poor = False, sqnr is not None and sqnr.value < _POOR_SQNR_DB
    if sqnr is not None and sqnr.value >= _GOOD_SQNR_DB:
        good, poor = True, False
    return "good" if good else "poor" if poor else "fair"


def _quality(result: pb.JobResult) -> Iterator[str]:
    before = words.find(result.baseline.metrics, pb.METRIC_TOP1)
    after = words.find(result.optimized.metrics, pb.METRIC_TOP1)
    if before is not None and after is not None:
        points = 100 * (after.value - before.value)
        yield (
            f"Top-1 {words.metric(after)} against {words.metric(before)} in FP32 "
            f"({_signed(points)} points, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{after.samples})."
        )
    yield from _fidelity(result)


def _fidelity(result: pb.JobResult) -> Iterator[str]:
    sqnr = words.find(result.optimized.metrics, pb.METRIC_SQNR)
    if sqnr is None:
        return
    sentence = f"SQNR {words.metric(sqnr)} to FP32"
    naive = words.find(result.naive.metrics, pb.METRIC_SQNR)
    if naive is not None:
        sentence += f", {_signed(sqnr.value - naive.value)} dB over naive quantization"
    agreement = words.find(result.optimized.metrics, pb.METRIC_AGREEMENT)
    if agreement is not None:
        sentence += f"; the same class as FP32 for {words.metric(agreement)} of samples"
    yield f"{sentence}."


def _size(result: pb.JobResult) -> Iterator[str]:
    before, after = result.baseline, result.optimized
    if before.file_bytes and after.file_bytes:
        ratio = text.ratio(before.file_bytes, after.file_bytes, "smaller", "larger")
        yield f"The file is {ratio} ({text.size(after.file_bytes)})."
    elif before.weight_bytes and after.weight_bytes:
        ratio = text.ratio(before.weight_bytes, after.weight_bytes, "smaller", "larger")
        yield f"The weights are {ratio} ({text.size(after.weight_bytes)})."


def _speed(result: pb.JobResult) -> Iterator[str]:
    if not (result.baseline.HasField("latency") and result.optimized.HasField("latency")):
        return
    before = result.baseline.latency.median_seconds
    after = result.optimized.latency.median_seconds
    ratio = text.ratio(before, after, "faster", "slower")
    sentence = f"One inference is {ratio} than FP32 here ({text.latency(after)})"
    yield f"{sentence}; other runtimes and processors differ." if after > before else f"{sentence}."


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _has_target(goal: pb.Goal) -> bool:
    return goal.WhichOneof("target") is not None


def _model(spec: pb.JobSpec) -> Iterator[tuple[str, str]]:
    model = spec.model
    source = words.enum_word(pb.ModelFormat.Name(model.format), "MODEL_FORMAT_")
    source = "ONNX" if model.format == pb.MODEL_FORMAT_ONNX else source
    if model.HasField("architecture"):
        library = pb.ArchitectureLibrary.Name(model.architecture.library)
        library = words.enum_word(library, "ARCHITECTURE_LIBRARY_")
        source = f"{library} {model.architecture.name}, weights as {source}"
    yield "Model", f"{source}, from {model.artifact.uri}"
    if model.inputs:
        yield "Inputs", "; ".join(_input(item) for item in model.inputs)


def _input(item: pb.InputSpec) -> str:
    dtype = words.enum_word(pb.ElementType.Name(item.dtype), "ELEMENT_TYPE_")
    return f"{item.name}: {dtype} [{', '.join(str(size) for size in item.shape)}]"


def _data(spec: pb.JobSpec) -> Iterator[tuple[str, str]]:
    if spec.HasField("calibration"):
        yield "Calibration", _dataset(spec.calibration)
    if spec.HasField("evaluation"):
        yield "Evaluation", _dataset(spec.evaluation)
    else:
        yield "Evaluation", "on the calibration samples: no evaluation set was given"
    if spec.metric:
        yield "Judged by", text.metric_name(spec.metric)


def _dataset(data: pb.Dataset) -> str:
    kind = words.enum_word(pb.DatasetFormat.Name(data.format), "DATASET_FORMAT_")
    limit = f", at most {words.count(data.max_samples)} samples" if data.max_samples else ""
    return f"{kind}{limit}, from {data.data.uri}"


def _quantization(spec: pb.JobSpec) -> Iterator[tuple[str, str]]:
    config = spec.plan.quantization
    granularity = _word(pb.Granularity.Name(config.weight_granularity), "GRANULARITY_")
    weights = [words.type_name(config.weights), granularity]
    weights.append(_word(pb.Symmetry.Name(config.weight_symmetry), "SYMMETRY_"))
    activations = [words.type_name(config.activations)]
    activations.append(_word(pb.Symmetry.Name(config.activation_symmetry), "SYMMETRY_"))
    yield "Weights", ", ".join(filter(None, weights))
    yield "Activations", ", ".join(filter(None, activations))
    if config.hardware_config:
        yield "Hardware", config.hardware_config
    if config.overrides:
        yield "Overrides", "; ".join(_override(item) for item in config.overrides)


def _word(name: str, prefix: str) -> str:
    return "" if name.endswith("_UNSPECIFIED") else words.enum_word(name, prefix)


def _override(item: pb.LayerOverride) -> str:
    where = ", ".join([*item.select.op_types, *item.select.layers])
    if item.leave_float:
        return f"{where}: float"
    types = [
        f"{name} {words.type_name(value)}"
        for name, value in (("weights", item.weights), ("activations", item.activations))
        if value
    ]
    return f"{where}: {', '.join(types)}"


def _goal(plan: pb.Plan) -> Iterator[tuple[str, str]]:
    if not plan.HasField("goal"):
        return
    goal = plan.goal
    target = {
        "max_drop": f"lose at most {goal.max_drop:g} against FP32",
        "max_relative_drop": f"lose at most {100 * goal.max_relative_drop:g} % of FP32's value",
        "value": f"reach {goal.value:g}",
    }
    yield "Goal", target.get(goal.WhichOneof("target") or "", "the best within the budget")
    budget = words.plural(goal.max_trials, "trial")
    if goal.HasField("time_budget"):
        budget += f", {text.seconds(goal.time_budget.ToTimedelta().total_seconds())}"
    yield "Budget", budget


def _step(step: pb.Step) -> tuple[str, str, str]:
    technique = technique_of(step)
    if technique is None:
        return step.id, "", ""
    return step.id, technique.info.summary, _parameters(getattr(step, technique.name))


def _parameters(message: Message) -> str:
    return ", ".join(
        f"{found.name.replace('_', ' ')} {_value(found, value)}"
        for found, value in message.ListFields()
    )


def _value(found: FieldDescriptor, value: object) -> str:
    if isinstance(value, Message):
        return f"({_parameters(value)})"
    if found.enum_type is not None and isinstance(value, int):
        values = found.enum_type.values_by_number
        prefix = values[0].name.removesuffix("UNSPECIFIED")
        return words.enum_word(values[value].name, prefix)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(item) for item in value)
    return str(value)
