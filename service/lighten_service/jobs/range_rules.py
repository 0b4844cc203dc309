"""Rules of the integers that INT8 weights may take, and of how a QDQ file stores them."""

from collections.abc import Iterator

from lighten import v1 as pb
from lighten_service.jobs.errors import Violation
from lighten_service.jobs.support import BLOCKWISE

_PATH = "plan.quantization"


def check_weight_range(spec: pb.JobSpec) -> Iterator[Violation]:
    """Yield what is wrong with ``weight_range`` and ``uint8_weights``, before defaults."""
    quantization = spec.plan.quantization
    blockwise = quantization.weight_granularity in BLOCKWISE
    if blockwise and quantization.weight_range == pb.WEIGHT_RANGE_EVERY_CPU:
        yield Violation(
            f"{_PATH}.weight_range",
            "the blockwise granularities have kernels of their own, which cannot be proven: use "
            "WEIGHT_RANGE_FULL, or GRANULARITY_PER_CHANNEL",
        )
    for index, override in enumerate(quantization.overrides):
        if override.uint8_weights and (reason := _not_unsigned(spec, override)):
            yield Violation(f"{_PATH}.overrides[{index}].uint8_weights", reason)


def _not_unsigned(spec: pb.JobSpec, override: pb.LayerOverride) -> str:
    """Return why weights cannot be stored as UINT8, or nothing."""
    quantization = spec.plan.quantization
    weights = override.weights or quantization.weights or pb.DATA_TYPE_INT8
    if spec.outputs.HasField("qdq_onnx") and not spec.outputs.qdq_onnx:
        return "is about the QDQ file alone; set outputs.qdq_onnx, or leave it out"
    if weights != pb.DATA_TYPE_INT8:
        return f"needs DATA_TYPE_INT8 weights, and these are {pb.DataType.Name(weights)}"
    if quantization.weight_symmetry == pb.SYMMETRY_ASYMMETRIC:
        return "asymmetric weights are stored as UINT8 already; leave it out"
    if quantization.weight_granularity in BLOCKWISE:
        return "does not work with blockwise granularities; leave it out"
    return ""
