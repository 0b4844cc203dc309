"""Types and granularities that do not work together are refused before a job is queued."""

import pytest

from lighten import v1 as pb
from lighten_service.jobs.support import type_support
from lighten_service.jobs.type_rules import check_types

INT4, INT8 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8
FLOAT16, FLOAT8 = pb.DATA_TYPE_FLOAT16, pb.DATA_TYPE_FLOAT8_E4M3
BLOCKWISE, LOW_POWER = pb.GRANULARITY_BLOCKWISE, pb.GRANULARITY_LOW_POWER_BLOCKWISE
UINT8 = "overrides[0].uint8_weights"
ONNX, TORCH = pb.MODEL_FORMAT_ONNX, pb.MODEL_FORMAT_SAFETENSORS


def spec(
    format_: pb.ModelFormat.ValueType = ONNX,
    outputs: pb.Outputs | None = None,
    **quantization: object,
) -> pb.JobSpec:
    return pb.JobSpec(
        model=pb.ModelSource(format=format_),
        plan=pb.Plan(quantization=pb.QuantizationConfig(**quantization)),
        outputs=outputs,
    )


def found(job: pb.JobSpec) -> dict[str, str]:
    return {item.field: item.description for item in check_types(job)}


@pytest.mark.parametrize("support", type_support(), ids=str)
def test_everything_listed_is_accepted(support: pb.TypeSupport) -> None:
    formats = {pb.ENGINE_ONNX: ONNX, pb.ENGINE_TORCH: TORCH}
    for granularity in support.granularities:
        job = spec(
            formats[support.engine],
            pb.Outputs(qdq_onnx=support.qdq_onnx),
            weights=support.weights,
            activations=support.activations,
            weight_granularity=granularity,
        )
        if granularity in (BLOCKWISE, LOW_POWER):
            job.plan.quantization.block_size = 32
        assert found(job) == {}


def unsigned(**override: object) -> dict[str, object]:
    select = pb.LayerSelector(op_types=["Conv"])
    return {"overrides": [pb.LayerOverride(select=select, uint8_weights=True, **override)]}


BAD = [
    (spec(weights=FLOAT16, activations=FLOAT16), "weights", "use one of DATA_TYPE_INT4"),
    (spec(TORCH, weights=FLOAT8, activations=FLOAT8), "weights", "ENGINE_TORCH"),
    (spec(activations=FLOAT8), "activations", "DATA_TYPE_INT8 weights"),
    (spec(weights=FLOAT8, activations=FLOAT8), "activations", "outputs.qdq_onnx to false"),
    (spec(activations=INT4), "activations", "outputs.qdq_onnx to false"),
    (spec(weight_granularity=BLOCKWISE), "block_size", "is required"),
    (
        spec(weight_granularity=BLOCKWISE, block_size=32, weight_range=pb.WEIGHT_RANGE_EVERY_CPU),
        "weight_range", "WEIGHT_RANGE_FULL",
    ),
    (spec(outputs=pb.Outputs(qdq_onnx=False), **unsigned()), UINT8, "outputs.qdq_onnx"),
    (spec(weights=INT4, **unsigned()), UINT8, "these are DATA_TYPE_INT4"),
    (spec(**unsigned(weights=INT4)), UINT8, "these are DATA_TYPE_INT4"),
    (spec(weight_symmetry=pb.SYMMETRY_ASYMMETRIC, **unsigned()), UINT8, "UINT8 already"),
    (spec(weight_granularity=BLOCKWISE, block_size=32, **unsigned()), UINT8, "blockwise"),
    (spec(block_size=32), "block_size", "GRANULARITY_BLOCKWISE"),
    (spec(weight_granularity=LOW_POWER, block_size=32), "weight_granularity", "GRANULARITY_BLOCK"),
    (
        spec(weights=INT4, weight_granularity=LOW_POWER, block_size=32,
             weight_symmetry=pb.SYMMETRY_ASYMMETRIC),
        "weight_symmetry", "symmetric grids alone",
    ),
    (
        spec(overrides=[pb.LayerOverride(weights=FLOAT16)]), "overrides[0].weights", "leave_float",
    ),
    (spec(overrides=[pb.LayerOverride(activations=INT4)]), "overrides[0].activations", "qdq_onnx"),
    (
        spec(TORCH, activations=FLOAT16, overrides=[pb.LayerOverride(activations=INT8)]),
        "overrides[0].activations", "no integers among DATA_TYPE_FLOAT16",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("job", "field", "hint"), BAD)
def test_what_cannot_work_is_refused_with_its_field(job: pb.JobSpec, field: str, hint: str) -> None:
    violations = found(job)

    assert list(violations) == [f"plan.quantization.{field}"]
    assert hint in violations[f"plan.quantization.{field}"]


def test_files_that_cannot_hold_the_types_are_refused() -> None:
    old = [pb.ENCODINGS_VERSION_0_6_1, pb.ENCODINGS_VERSION_2_0_0]
    float8 = spec(
        outputs=pb.Outputs(encodings=old, qdq_onnx=False), weights=FLOAT8, activations=FLOAT8
    )
    blocks = {"weights": INT4, "weight_granularity": LOW_POWER, "block_size": 32}
    low = spec(outputs=pb.Outputs(opset=20), weight_granularity=BLOCKWISE, block_size=32)

    assert "0_6_1" in found(float8)["outputs.encodings"]
    assert "0_6_1" in found(spec(outputs=pb.Outputs(encodings=old), **blocks))["outputs.encodings"]
    assert "GRANULARITY_BLOCKWISE" in found(low)["outputs.opset"]
    assert found(spec(outputs=pb.Outputs(opset=20), activations=FLOAT16)) == {}
