"""What works together, in one place: read by the check of a spec and by GetCapabilities."""

from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor

from lighten import v1 as pb

# Configurations that AIMET packages beside its default, which is the empty name.
HARDWARE_CONFIGS: Final = (
    "enpu_v6",
    "enpu_v7",
    "htp_v66",
    "htp_v68",
    "htp_v69",
    "htp_v73",
    "htp_v75",
    "htp_v79",
    "htp_v81",
    "htp_v85",
)

ENGINES: Final = {
    pb.MODEL_FORMAT_ONNX: pb.ENGINE_ONNX,
    pb.MODEL_FORMAT_SAFETENSORS: pb.ENGINE_TORCH,
    pb.MODEL_FORMAT_STATE_DICT: pb.ENGINE_TORCH,
}

ARRAY_FORMATS: Final = frozenset(
    {pb.DATASET_FORMAT_NPZ, pb.DATASET_FORMAT_NPY, pb.DATASET_FORMAT_SAFETENSORS}
)
# Array formats that can hold an array of labels beside the inputs.
LABELLED_ARRAY_FORMATS: Final = ARRAY_FORMATS - {pb.DATASET_FORMAT_NPY}
LABEL_METRICS: Final = frozenset({pb.METRIC_TOP1, pb.METRIC_TOP5})

# ONNX has 4-bit and 16-bit QuantizeLinear from this opset on.
WIDE_TYPES_OPSET: Final = 21

_INT4, _INT8, _INT16 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16
_FLOAT16, _FLOAT8 = pb.DATA_TYPE_FLOAT16, pb.DATA_TYPE_FLOAT8_E4M3
_SCALES: Final = (pb.GRANULARITY_PER_TENSOR, pb.GRANULARITY_PER_CHANNEL)
_BLOCKS: Final = pb.GRANULARITY_BLOCKWISE
_LOW_POWER_BLOCKS: Final = pb.GRANULARITY_LOW_POWER_BLOCKWISE
BLOCKWISE: Final = frozenset({_BLOCKS, _LOW_POWER_BLOCKS})
INTEGERS: Final = frozenset({_INT4, _INT8, _INT16})
# Versions of the encodings file that cannot hold a type or a granularity.
VERSIONS_WITHOUT_FLOAT8: Final = frozenset({pb.ENCODINGS_VERSION_0_6_1, pb.ENCODINGS_VERSION_1_0_0})
VERSIONS_WITHOUT_LOW_POWER_BLOCKS: Final = frozenset({pb.ENCODINGS_VERSION_0_6_1})


def type_support() -> tuple[pb.TypeSupport, ...]:
    """Return every combination of engine, types and granularities that works.

    Without QDQ: ONNX Runtime has no 4-bit MaxPool, and no integer kernel, to which it would fuse
    them, for float8 activations.
    """
    both = (pb.ENGINE_TORCH, pb.ENGINE_ONNX)
    rows = [
        pb.TypeSupport(
            engine=engine,
            weights=weights,
            activations=activations,
            qdq_onnx=activations != _INT4,
            granularities=_granularities(weights, activations),
        )
        for engine in both
        for weights in (_INT4, _INT8, _INT16)
        for activations in (_INT4, _INT8, _INT16, _FLOAT16)
    ]
    # aimet-torch simulates float8 and cannot export it.
    rows += [
        pb.TypeSupport(
            engine=pb.ENGINE_ONNX,
            weights=_FLOAT8,
            activations=activations,
            qdq_onnx=activations == _FLOAT16,
            granularities=_SCALES,
        )
        for activations in (_FLOAT8, _FLOAT16)
    ]
    return tuple(rows)


def _granularities(
    weights: pb.DataType.ValueType, activations: pb.DataType.ValueType
) -> list[pb.Granularity.ValueType]:
    blocks = {_INT4: [_BLOCKS, _LOW_POWER_BLOCKS], _INT8: [_BLOCKS]}.get(weights, [])
    return [*_SCALES, *(blocks if activations != _INT4 else [])]


@dataclass(frozen=True, slots=True)
class TechniqueFacts:
    """One technique as its descriptor has it. ``name``: the field of Step.technique."""

    name: str
    message: Descriptor
    info: pb.TechniqueInfo


def _techniques() -> dict[str, TechniqueFacts]:
    oneof = pb.Step.DESCRIPTOR.oneofs_by_name["technique"]
    return {
        field.name: TechniqueFacts(
            field.name,
            field.message_type,
            field.message_type.GetOptions().Extensions[pb.technique],
        )
        for field in oneof.fields
        if field.message_type is not None
    }


TECHNIQUES: Final = _techniques()


def technique_of(step: pb.Step) -> TechniqueFacts | None:
    """Return the facts of a step's technique, or None when it names none."""
    name = step.WhichOneof("technique")
    return TECHNIQUES[name] if name else None
