"""Fills every default into a spec, so that later defaults never change old jobs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from lighten import v1 as pb
from lighten_service.jobs.support import ARRAY_FORMATS, BLOCKWISE, LABELLED_ARRAY_FORMATS
from lighten_service.jobs.widths import next_wider

M = TypeVar("M", bound=Message)

_FLOATS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
_PIXEL_SCALE: Final = 1 / 255
# Nanoseconds.
_SHORTEST_BUDGET: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ResourceDefaults:
    """What the operator gives to a job that does not say what it needs."""

    memory_bytes: int
    scratch_bytes: int
    queue_timeout_seconds: int
    run_timeout_seconds: int


def resolve(spec: pb.JobSpec, defaults: ResourceDefaults) -> pb.JobSpec:
    """Return a copy with every default filled in. ``resolve(resolve(x))`` equals ``resolve(x)``.

    ``metric`` stays unspecified where only the data can tell whether there are labels.
    """
    resolved = pb.JobSpec()
    resolved.CopyFrom(spec)
    for part in (resolved.outputs, resolved.resources):
        part.SetInParent()
    for dataset in (resolved.calibration, resolved.evaluation):
        if dataset.HasField("data"):
            dataset.preprocessing.SetInParent()
    _fill(resolved)
    resolve_plan(resolved.plan)
    resolve_weight_range(resolved.plan, resolved.outputs)
    for dataset in (resolved.calibration, resolved.evaluation):
        if dataset.HasField("data"):
            _resolve_dataset(dataset)
    resolved.metric = resolved.metric or default_metric(resolved)
    if not resolved.outputs.encodings:
        resolved.outputs.encodings.append(pb.ENCODINGS_VERSION_2_0_0)
    _resolve_resources(resolved.resources, defaults)
    _resolve_goal(resolved.plan, resolved.resources.run_timeout)
    return resolved


def with_defaults(message: M) -> M:
    """Return a copy with every default that its .proto gives, of messages that it holds too.

    Defaults that depend on other fields are those of ``resolve`` alone.
    """
    filled = type(message)()
    filled.CopyFrom(message)
    _fill(filled)
    return filled


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What there is to fill in a type of message, read from its descriptor once."""

    # Name, whether the field has presence, value.
    values: tuple[tuple[str, bool, Any], ...]
    # Numbers of the fields that hold messages, maps left out.
    messages: frozenset[int]


@cache
def _defaults(descriptor: Descriptor) -> _Defaults:
    values, messages = [], set()
    for field in descriptor.fields:
        text = field.GetOptions().Extensions[pb.bounds].default_value
        if text and not field.is_repeated:
            values.append((field.name, field.has_presence, _parse(field, text)))
        inner = field.message_type
        if inner is not None and not inner.GetOptions().map_entry:
            messages.add(field.number)
    return _Defaults(tuple(values), frozenset(messages))


def _fill(message: Message) -> None:
    """Set the ``default_value`` of every absent field, in this message and those inside it."""
    defaults = _defaults(message.DESCRIPTOR)
    for name, has_presence, value in defaults.values:
        # Without presence (enums) the first value says that the caller named none.
        if not (message.HasField(name) if has_presence else getattr(message, name)):
            setattr(message, name, value)
    if not defaults.messages:
        return
    for field, value in message.ListFields():
        if field.number in defaults.messages:
            for inner in value if field.is_repeated else (value,):
                _fill(inner)


def _parse(field: Any, text: str) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_name[text].number
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return text == "true"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text
    return float(text) if field.cpp_type in _FLOATS else int(text)


def _resolve_dataset(dataset: pb.Dataset) -> None:
    """Set what depends on the format, and take back what does not apply to it."""
    preprocessing = dataset.preprocessing
    arrays = dataset.format in ARRAY_FORMATS
    if not preprocessing.HasField("scale"):
        preprocessing.scale = 1.0 if arrays else _PIXEL_SCALE
    if arrays:
        preprocessing.ClearField("color")
        preprocessing.ClearField("layout")
    if dataset.format not in LABELLED_ARRAY_FORMATS:
        dataset.ClearField("label_key")


def resolve_plan(plan: pb.Plan) -> None:
    """Fill every default into a plan, and an id into every step; a goal's time is left out."""
    plan.quantization.SetInParent()
    _fill(plan)
    if not plan.quantization.hardware_config and not plan.quantization.HasField("fuse_activations"):
        plan.quantization.fuse_activations = True
    _resolve_ids(plan.steps.steps)
    for step in plan.steps.steps:
        _resolve_parameters(step, plan.quantization)


def resolve_weight_range(plan: pb.Plan, outputs: pb.Outputs) -> None:
    """Choose the integers of INT8 weights: those that suit every CPU, where a file is written for
    CPUs and nothing else is known of the target. Other defaults are filled in already."""
    quantization = plan.quantization
    if quantization.weight_range:
        return
    suits = (
        outputs.qdq_onnx
        and not quantization.hardware_config
        and quantization.weight_granularity not in BLOCKWISE
        and pb.DATA_TYPE_INT8 in weight_types(plan)
    )
    quantization.weight_range = pb.WEIGHT_RANGE_EVERY_CPU if suits else pb.WEIGHT_RANGE_FULL


def weight_types(plan: pb.Plan) -> set[pb.DataType.ValueType]:
    """Return every type that a plan may give to weights. Defaults are filled in already."""
    types = {plan.quantization.weights}
    if plan.goal.max_bops_ratio > 1:  # the search may widen layers
        types.add(_widened(plan.quantization.weights))
    types |= {override.weights for override in plan.quantization.overrides if override.weights}
    mixed = (step.mixed_precision for step in plan.steps.steps if step.HasField("mixed_precision"))
    return types | {step.weights for step in mixed if step.weights}


def default_metric(spec: pb.JobSpec) -> pb.Metric.ValueType:
    """Return the metric of a spec that names none; unspecified where only the data can tell."""
    labels_possible = (
        spec.HasField("evaluation") and spec.evaluation.format != pb.DATASET_FORMAT_NPY
    )
    return pb.METRIC_UNSPECIFIED if labels_possible else pb.METRIC_SQNR


def _resolve_ids(steps: Iterable[pb.Step]) -> None:
    taken = {step.id for step in steps}
    seen: Counter[str] = Counter()
    for step in steps:
        name = step.WhichOneof("technique") or ""
        while not step.id:
            seen[name] += 1
            candidate = name if seen[name] == 1 else f"{name}_{seen[name]}"
            if candidate not in taken:
                step.id = candidate


def _resolve_parameters(step: pb.Step, quantization: pb.QuantizationConfig) -> None:
    """Take back defaults that do not apply, and set those that depend on the plan."""
    match step.WhichOneof("technique"):
        case "calibrate":
            if step.calibrate.scheme != pb.RANGE_SCHEME_PERCENTILE:
                step.calibrate.ClearField("percentile")
            if step.calibrate.scheme != pb.RANGE_SCHEME_MEAN_MIN_MAX:
                step.calibrate.ClearField("reach")
        case "cross_layer_equalization" if not step.cross_layer_equalization.scaling:
            # Absorption moves the biases of scaled pairs.
            step.cross_layer_equalization.high_bias_absorption = pb.HIGH_BIAS_ABSORPTION_NEVER
        case "bias_correction":
            if step.bias_correction.method == pb.BIAS_CORRECTION_METHOD_ANALYTIC:
                step.bias_correction.ClearField("max_samples")
        case "mixed_precision":
            wider = step.mixed_precision
            wider.weights = wider.weights or _widened(quantization.weights)
            wider.activations = wider.activations or _widened(quantization.activations)


def _widened(data_type: pb.DataType.ValueType) -> pb.DataType.ValueType:
    return next_wider(data_type) or data_type


def _resolve_goal(plan: pb.Plan, run_timeout: Duration) -> None:
    if plan.HasField("goal") and not plan.goal.HasField("time_budget"):
        half = max(run_timeout.ToNanoseconds() // 2, _SHORTEST_BUDGET)
        plan.goal.time_budget.FromNanoseconds(half)


def _resolve_resources(resources: pb.Resources, defaults: ResourceDefaults) -> None:
    if not resources.HasField("memory_bytes"):
        resources.memory_bytes = defaults.memory_bytes
    if not resources.HasField("scratch_bytes"):
        resources.scratch_bytes = defaults.scratch_bytes
    if not resources.HasField("queue_timeout"):
        resources.queue_timeout.CopyFrom(Duration(seconds=defaults.queue_timeout_seconds))
    if not resources.HasField("run_timeout"):
        resources.run_timeout.CopyFrom(Duration(seconds=defaults.run_timeout_seconds))
