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

_TYPES: Final = (pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16)


def type_support() -> tuple[pb.TypeSupport, ...]:
    """Return every combination of engine and types that works."""
    return tuple(
        pb.TypeSupport(
            engine=engine,
            weights=weights,
            activations=activations,
            # ONNX Runtime has no 4-bit MaxPool, so such a graph may not load.
            qdq_onnx=activations != pb.DATA_TYPE_INT4,
        )
        for engine in (pb.ENGINE_TORCH, pb.ENGINE_ONNX)
        for weights in _TYPES
        for activations in _TYPES
    )


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
