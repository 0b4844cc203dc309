"""Rules of types and granularities: which work together, and in which files."""

from collections.abc import Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.range_rules import check_weight_range
from lighten_service.jobs.support import (
    BLOCKWISE,
    ENGINES,
    INTEGERS,
    VERSIONS_WITHOUT_FLOAT8,
    VERSIONS_WITHOUT_LOW_POWER_BLOCKS,
    WIDE_TYPES_OPSET,
    type_support,
)

_SUPPORTED = {(item.engine, item.weights, item.activations): item for item in type_support()}
_PATH = "plan.quantization"


def check_types(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with the types of ``spec.plan.quantization``.

    They are checked against what the defaults will be, which `resolve` fills in later.
    """
    quantization = spec.plan.quantization
    yield from _check_blocks(quantization)
    yield from check_weight_range(spec)
    yield from _check_types_of_overrides(spec)
    engine = ENGINES.get(spec.model.format)
    if engine is None:
        return
    weights, activations = _types(quantization)
    support = _SUPPORTED.get((engine, weights, activations))
    if support is None:
        yield _unsupported(engine, weights, activations)
        return
    granularity = quantization.weight_granularity or pb.GRANULARITY_PER_CHANNEL
    if granularity not in support.granularities:
        known = ", ".join(pb.Granularity.Name(item) for item in support.granularities)
        yield Violation(
            f"{_PATH}.weight_granularity",
            f"{pb.Granularity.Name(granularity)} does not work with {_name(weights)} weights and "
            f"{_name(activations)} activations; use one of {known}",
        )
    if _wants_qdq(spec) and not support.qdq_onnx:
        yield Violation(
            f"{_PATH}.activations",
            f"{_name(activations)} cannot be written as QDQ ONNX that runs: use DATA_TYPE_INT8 or "
            "DATA_TYPE_INT16, or set outputs.qdq_onnx to false",
        )
    yield from _check_files(spec, weights, activations, granularity)


def _check_blocks(quantization: pb.QuantizationConfig) -> Iterator[Violation]:
    blockwise = quantization.weight_granularity in BLOCKWISE
    if blockwise and not quantization.HasField("block_size"):
        name = pb.Granularity.Name(quantization.weight_granularity)
        yield Violation(f"{_PATH}.block_size", f"is required with {name}, for example 32")
    if quantization.HasField("block_size") and not blockwise:
        yield Violation(
            f"{_PATH}.block_size",
            "belongs to the blockwise granularities; set weight_granularity to "
            "GRANULARITY_BLOCKWISE, or leave it out",
        )
    asymmetric = quantization.weight_symmetry == pb.SYMMETRY_ASYMMETRIC
    if asymmetric and quantization.weight_granularity == pb.GRANULARITY_LOW_POWER_BLOCKWISE:
        yield Violation(
            f"{_PATH}.weight_symmetry",
            "low-power blocks have symmetric grids alone; leave it out, or use "
            "GRANULARITY_BLOCKWISE",
        )


def _check_types_of_overrides(spec: pb.JobSpec) -> Iterator[Violation]:
    for index, override in enumerate(spec.plan.quantization.overrides):
        path = f"{_PATH}.overrides[{index}]"
        for field in ("weights", "activations"):
            type_ = getattr(override, field)
            if type_ and type_ not in INTEGERS:
                yield Violation(
                    f"{path}.{field}",
                    f"{_name(type_)} is for whole plans; operators may have DATA_TYPE_INT4, "
                    "DATA_TYPE_INT8 or DATA_TYPE_INT16, or leave_float",
                )
        half = spec.plan.quantization.activations == pb.DATA_TYPE_FLOAT16
        if override.activations and half and ENGINES.get(spec.model.format) == pb.ENGINE_TORCH:
            yield Violation(
                f"{path}.activations",
                "ENGINE_TORCH has no integers among DATA_TYPE_FLOAT16 activations; leave it out",
            )
        if override.activations == pb.DATA_TYPE_INT4 and _wants_qdq(spec):
            yield Violation(
                f"{path}.activations",
                "DATA_TYPE_INT4 cannot be written as QDQ ONNX that runs: use DATA_TYPE_INT8 or "
                "DATA_TYPE_INT16, or set outputs.qdq_onnx to false",
            )


def _check_files(
    spec: pb.JobSpec,
    weights: pb.DataType.ValueType,
    activations: pb.DataType.ValueType,
    granularity: pb.Granularity.ValueType,
) -> Iterator[Violation]:
    """Check opset and versions of encodings against the types that the files must hold."""
    without: frozenset[pb.EncodingsVersion.ValueType] = frozenset()
    if granularity == pb.GRANULARITY_LOW_POWER_BLOCKWISE:
        without |= VERSIONS_WITHOUT_LOW_POWER_BLOCKS
    if pb.DATA_TYPE_FLOAT8_E4M3 in (weights, activations):
        without |= VERSIONS_WITHOUT_FLOAT8
    for version in sorted(without & set(spec.outputs.encodings)):
        yield Violation(
            "outputs.encodings",
            f"{pb.EncodingsVersion.Name(version)} cannot hold what the plan asks for; use "
            "ENCODINGS_VERSION_2_0_0",
        )
    wide = {weights, activations} - {pb.DATA_TYPE_INT8, pb.DATA_TYPE_FLOAT16}
    wide |= {type_ for item in spec.plan.quantization.overrides for type_ in _wide(item)}
    reason = _name(min(wide)) if wide else ""
    if granularity in BLOCKWISE:
        reason = reason or pb.Granularity.Name(granularity)
    outputs = spec.outputs
    too_low = outputs.HasField("opset") and outputs.opset < WIDE_TYPES_OPSET
    if reason and too_low and _wants_qdq(spec):
        yield Violation(
            "outputs.opset",
            f"must be at least {WIDE_TYPES_OPSET} for {reason}, and is {outputs.opset}",
        )


def _wide(override: pb.LayerOverride) -> set[pb.DataType.ValueType]:
    return {override.weights, override.activations} & (INTEGERS - {pb.DATA_TYPE_INT8})


def _types(
    quantization: pb.QuantizationConfig,
) -> tuple[pb.DataType.ValueType, pb.DataType.ValueType]:
    return (
        quantization.weights or pb.DATA_TYPE_INT8,
        quantization.activations or pb.DATA_TYPE_INT8,
    )


def _unsupported(
    engine: pb.Engine.ValueType,
    weights: pb.DataType.ValueType,
    activations: pb.DataType.ValueType,
) -> Violation:
    with_weights = [item for item in _SUPPORTED.values() if item.engine == engine]
    known = [_name(item.activations) for item in with_weights if item.weights == weights]
    if known:
        return Violation(
            f"{_PATH}.activations",
            f"{_name(activations)} does not work with {_name(weights)} weights on "
            f"{pb.Engine.Name(engine)}; use one of {', '.join(known)}",
        )
    types = dict.fromkeys(_name(item.weights) for item in with_weights)
    return Violation(
        f"{_PATH}.weights",
        f"{_name(weights)} does not work for weights on {pb.Engine.Name(engine)}; use one of "
        f"{', '.join(types)}",
    )


def _wants_qdq(spec: pb.JobSpec) -> bool:
    return not spec.outputs.HasField("qdq_onnx") or spec.outputs.qdq_onnx


def _name(type_: pb.DataType.ValueType) -> str:
    return pb.DataType.Name(type_)
