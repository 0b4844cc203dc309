# ruff: noqa: E501 - a table reads best with one case a line
"""What a spec must fulfil before a model is loaded, and how defaults are filled in."""

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.api.validation import validate
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.resolve import ResourceDefaults, resolve
from lighten_service.jobs.spec_rules import check_spec
from tests.support.specs import onnx_spec, torch_spec

DEFAULTS = ResourceDefaults(
    memory_bytes=1 << 30, scratch_bytes=2 << 30, queue_timeout_seconds=60, run_timeout_seconds=120
)
DIGEST = "0" * 64
FOLD = pb.Step(fold_batch_norms=pb.FoldBatchNorms())
EQUALIZE = pb.Step(cross_layer_equalization=pb.CrossLayerEqualization())
CALIBRATE = pb.Step(calibrate=pb.Calibrate())


def with_steps(*steps: pb.Step) -> Callable[[pb.JobSpec], None]:
    def change(spec: pb.JobSpec) -> None:
        del spec.plan.steps.steps[:]
        spec.plan.steps.steps.extend(steps)

    return change


def merged(**fields: object) -> Callable[[pb.JobSpec], None]:
    return lambda spec: spec.MergeFrom(pb.JobSpec(**fields))  # type: ignore[arg-type]


def evaluation(data: str, kind: pb.DatasetFormat.ValueType, **fields: object) -> pb.Dataset:
    return pb.Dataset(data=pb.ObjectRef(uri=data), format=kind, **fields)  # type: ignore[arg-type]


def calibration_of(**fields: object) -> Callable[[pb.JobSpec], None]:
    return merged(calibration=pb.Dataset(**fields))  # type: ignore[arg-type]


def preprocessing(**fields: object) -> Callable[[pb.JobSpec], None]:
    return calibration_of(preprocessing=pb.Preprocessing(**fields))  # type: ignore[arg-type]


def quantization(**fields: object) -> Callable[[pb.JobSpec], None]:
    return merged(plan=pb.Plan(quantization=pb.QuantizationConfig(**fields)))  # type: ignore[arg-type]


INT4, INT16 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT16

BAD = [
    # Steps.
    (onnx_spec, with_steps(FOLD), "plan.steps.steps", "exactly one"),
    (onnx_spec, with_steps(CALIBRATE, CALIBRATE), "plan.steps.steps", "only once"),
    (onnx_spec, with_steps(FOLD, FOLD, CALIBRATE), "plan.steps.steps", "fold_batch_norms may"),
    (
        onnx_spec,
        with_steps(CALIBRATE, EQUALIZE, FOLD),
        "plan.steps.steps",
        "fold_batch_norms, cross_layer_equalization, calibrate",
    ),
    (onnx_spec, with_steps(pb.Step()), "plan.steps.steps[0]", "names no technique"),
    (
        onnx_spec,
        with_steps(pb.Step(id="x", fold_batch_norms=pb.FoldBatchNorms()), pb.Step(id="x", calibrate=pb.Calibrate())),
        "plan.steps.steps[1].id",
        "ids must differ",
    ),
    (
        onnx_spec,
        with_steps(pb.Step(id="naive", calibrate=pb.Calibrate())),
        "plan.steps.steps[0].id",
        "column of the result",
    ),
    (
        onnx_spec,
        with_steps(pb.Step(calibrate=pb.Calibrate(percentile=99))),
        "plan.steps.steps[0].calibrate.percentile",
        "RANGE_SCHEME_PERCENTILE",
    ),
    (onnx_spec, lambda spec: spec.plan.ClearField("steps"), "plan.steps", "calibrate"),
    (onnx_spec, lambda spec: spec.ClearField("calibration"), "calibration", "fitted to data"),
    # Types and outputs.
    (onnx_spec, quantization(activations=INT4), "plan.quantization.activations", "INT8"),
    (torch_spec, merged(plan=pb.Plan(quantization=pb.QuantizationConfig(weights=INT4)), outputs=pb.Outputs(opset=20)), "outputs.opset", "at least 21"),
    (torch_spec, merged(plan=pb.Plan(quantization=pb.QuantizationConfig(activations=INT16)), outputs=pb.Outputs(opset=17)), "outputs.opset", "INT16"),
    (onnx_spec, quantization(hardware_config="htp_v1"), "plan.quantization.hardware_config", "htp_v73"),
    (onnx_spec, merged(outputs=pb.Outputs(encodings=[1, 1])), "outputs.encodings", "twice"),
    # Model.
    (onnx_spec, merged(model=pb.ModelSource(architecture=pb.Architecture(name="resnet18"))), "model.architecture", "leave it out"),
    (torch_spec, lambda spec: spec.model.ClearField("architecture"), "model.architecture", "required"),
    (torch_spec, lambda spec: spec.model.ClearField("inputs"), "model.inputs", "required"),
    (torch_spec, merged(model=pb.ModelSource(architecture=pb.Architecture(in_channels=1))), "model.architecture.in_channels", "timm"),
    (torch_spec, merged(model=pb.ModelSource(artifact=pb.ObjectRef(uri="file:///data/m/"))), "model.artifact.uri", "one file"),
    (torch_spec, merged(model=pb.ModelSource(inputs=[pb.InputSpec(name="input", shape=[1])])), "model.inputs[1].name", "twice"),
    (torch_spec, merged(model=pb.ModelSource(inputs=[pb.InputSpec(name="b", shape=[-1, 3])])), "model.inputs[1].shape", "at least 1"),
    (onnx_spec, merged(model=pb.ModelSource(artifact=pb.ObjectRef(uri="file:///m/", sha256=DIGEST))), "model.artifact.sha256", "one file"),
    (onnx_spec, merged(model=pb.ModelSource(artifact=pb.ObjectRef(files=[pb.FileDigest(path="a", sha256=DIGEST)]))), "model.artifact.files", "folder"),
    (onnx_spec, merged(model=pb.ModelSource(artifact=pb.ObjectRef(uri="file:///m/", files=[pb.FileDigest(path="../a", sha256=DIGEST)]))), "model.artifact.files[0].path", "below the folder"),
    # Datasets.
    (onnx_spec, calibration_of(data=pb.ObjectRef(uri="file:///data/folder/")), "calibration.data.uri", "one file"),
    (torch_spec, calibration_of(data=pb.ObjectRef(uri="file:///data/images")), "calibration.data.uri", "a folder"),
    (onnx_spec, preprocessing(resize=pb.Resize(shorter_side=8)), "calibration.preprocessing.resize", "images"),
    (onnx_spec, preprocessing(color=pb.COLOR_MODE_BGR), "calibration.preprocessing.color", "images"),
    (onnx_spec, preprocessing(layout=pb.LAYOUT_NHWC), "calibration.preprocessing.layout", "images"),
    (onnx_spec, preprocessing(std=[0.0]), "calibration.preprocessing.std[0]", "above 0"),
    (torch_spec, preprocessing(std=[1.0, 2.0]), "calibration.preprocessing.std", "1, or 3"),
    (torch_spec, preprocessing(color=pb.COLOR_MODE_GRAY), "calibration.preprocessing.mean", "1, or 1"),
    (torch_spec, preprocessing(resize=pb.Resize(height=8)), "calibration.preprocessing.resize", "shorter_side alone"),
    (torch_spec, calibration_of(input_keys={"input": "x"}), "calibration.input_keys", "leave it out"),
    (torch_spec, calibration_of(label_key="y"), "calibration.label_key", "leave it out"),
    (onnx_spec, merged(evaluation=evaluation("file:///data/calibration.npz", pb.DATASET_FORMAT_NPZ)), "evaluation.data", "has not seen"),
    (onnx_spec, merged(metric=pb.METRIC_TOP1), "evaluation", "METRIC_TOP1"),
    (onnx_spec, merged(metric=pb.METRIC_TOP5, evaluation=evaluation("file:///e.npy", pb.DATASET_FORMAT_NPY)), "evaluation.format", "NPZ"),
    # Resources and labels.
    (onnx_spec, merged(resources=pb.Resources(gpus=1, gpu_profile="h100")), "resources.gpu_profile", "a10"),
    (onnx_spec, merged(resources=pb.Resources(run_timeout=Duration(seconds=0))), "resources.run_timeout", "1 second"),
    (onnx_spec, merged(resources=pb.Resources(queue_timeout=Duration(seconds=400 * 86400))), "resources.queue_timeout", "366 days"),
    (onnx_spec, merged(labels={"": "x"}), "labels[]", "63"),
    (onnx_spec, merged(labels={"key": "x" * 64}), "labels[key]", "63"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change", "field", "hint"), BAD)
def test_what_cannot_work_is_refused(make, change, field, hint):
    spec = make()
    change(spec)
    with pytest.raises(InvalidArgument) as caught:
        check_spec(spec, ["a10"])
    found = {item.field: item.description for item in caught.value.violations}
    assert set(found) == {f"spec.{field}"}
    assert hint in found[f"spec.{field}"]


GOOD = [
    (onnx_spec, lambda spec: None),
    (torch_spec, lambda spec: None),
    (onnx_spec, with_steps(FOLD, EQUALIZE, CALIBRATE)),
    (onnx_spec, quantization(weights=INT4, activations=INT16, hardware_config="htp_v73")),
    (onnx_spec, merged(plan=pb.Plan(quantization=pb.QuantizationConfig(activations=INT4)), outputs=pb.Outputs(qdq_onnx=False))),
    (onnx_spec, merged(metric=pb.METRIC_TOP1, evaluation=evaluation("file:///e.npz", pb.DATASET_FORMAT_NPZ))),
    (onnx_spec, merged(resources=pb.Resources(gpus=1, gpu_profile="a10", run_timeout=Duration(seconds=5)))),
    (onnx_spec, with_steps(pb.Step(calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE)))),
    (onnx_spec, with_steps(pb.Step(id="fold_batch_norms", calibrate=pb.Calibrate()))),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change"), GOOD)
def test_a_good_spec_resolves_to_one_that_is_good_and_resolves_to_itself(make, change):
    spec = make()
    change(spec)
    check_spec(spec, ["a10"])
    resolved = resolve(spec, DEFAULTS)
    check_spec(resolved, ["a10"])
    validate(resolved)
    assert resolve(resolved, ResourceDefaults(1 << 31, 1 << 31, 1, 1)) == resolved


def test_every_default_is_filled_in():
    resolved = resolve(onnx_spec(), DEFAULTS)
    assert resolved.plan.quantization == pb.QuantizationConfig(
        weights=pb.DATA_TYPE_INT8,
        activations=pb.DATA_TYPE_INT8,
        fuse_activations=True,
        weight_range=pb.WEIGHT_RANGE_EVERY_CPU,
    )
    assert resolved.outputs == pb.Outputs(
        encodings=[pb.ENCODINGS_VERSION_2_0_0],
        float_onnx=True,
        qdq_onnx=True,
        opset=21,
        verify=True,
        report=True,
    )
    assert resolved.resources == pb.Resources(
        gpus=0,
        memory_bytes=1 << 30,
        scratch_bytes=2 << 30,
        queue_timeout=Duration(seconds=60),
        run_timeout=Duration(seconds=120),
        max_retries=2,
        priority=0,
    )
    assert resolved.HasField("seed")
    assert resolved.metric == pb.METRIC_SQNR
    assert resolved.calibration == pb.Dataset(
        data=pb.ObjectRef(uri="file:///data/calibration.npz"),
        format=pb.DATASET_FORMAT_NPZ,
        seed=0,
        batch_size=8,
        preprocessing=pb.Preprocessing(scale=1.0),
        label_key="label",
        bad_samples=pb.BAD_SAMPLE_POLICY_FAIL,
    )
    assert resolved.plan.steps.steps[0] == pb.Step(
        id="calibrate",
        if_not_applicable=pb.IF_NOT_APPLICABLE_FAIL,
        calibrate=pb.Calibrate(scheme=pb.RANGE_SCHEME_MIN_MAX),
    )


EVERY_CPU, FULL = pb.WEIGHT_RANGE_EVERY_CPU, pb.WEIGHT_RANGE_FULL
RANGES = [
    (quantization(), EVERY_CPU),
    (quantization(activations=INT16), EVERY_CPU),
    (quantization(weight_range=FULL), FULL),
    (quantization(hardware_config="htp_v73"), FULL),
    (quantization(hardware_config="htp_v73", weight_range=EVERY_CPU), EVERY_CPU),
    (quantization(weights=INT4), FULL),
    (quantization(weight_granularity=pb.GRANULARITY_BLOCKWISE, block_size=32), FULL),
    (merged(outputs=pb.Outputs(qdq_onnx=False)), FULL),
    (quantization(weights=INT4, overrides=[pb.LayerOverride(select=pb.LayerSelector(op_types=["Conv"]), weights=pb.DATA_TYPE_INT8)]), EVERY_CPU),
    (merged(plan=pb.Plan(quantization=pb.QuantizationConfig(weights=INT4), steps=pb.Steps(steps=[pb.Step(mixed_precision=pb.MixedPrecision(min_sqnr_db=20))]))), EVERY_CPU),
    (merged(plan=pb.Plan(quantization=pb.QuantizationConfig(weights=INT4), goal=pb.Goal(max_bops_ratio=2))), EVERY_CPU),
    (merged(plan=pb.Plan(quantization=pb.QuantizationConfig(weights=INT4), goal=pb.Goal())), FULL),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), RANGES)
def test_int8_weights_of_a_qdq_file_suit_every_cpu_unless_the_target_is_known(change, expected):
    spec = onnx_spec()
    change(spec)
    check_spec(spec, [])
    resolved = resolve(spec, DEFAULTS)
    assert resolved.plan.quantization.weight_range == expected
    assert resolve(resolved, DEFAULTS) == resolved


def test_images_get_their_own_defaults():
    spec = torch_spec()
    spec.calibration.ClearField("preprocessing")
    resolved = resolve(spec, DEFAULTS)
    assert resolved.calibration.preprocessing == pb.Preprocessing(
        color=pb.COLOR_MODE_RGB, scale=1 / 255, layout=pb.LAYOUT_NCHW
    )
    assert not resolved.calibration.HasField("label_key")
    assert resolved.model.inputs[0].dtype == pb.ELEMENT_TYPE_FLOAT32


def test_the_metric_stays_open_where_only_the_data_can_tell():
    spec = onnx_spec()
    spec.evaluation.CopyFrom(evaluation("file:///e.npz", pb.DATASET_FORMAT_NPZ))
    assert resolve(spec, DEFAULTS).metric == pb.METRIC_UNSPECIFIED


def test_what_the_caller_set_is_kept():
    spec = onnx_spec()
    spec.seed = 7
    spec.outputs.verify = False
    spec.outputs.opset = 17
    spec.resources.max_retries = 0
    spec.plan.steps.steps[0].calibrate.scheme = pb.RANGE_SCHEME_PERCENTILE
    resolved = resolve(spec, DEFAULTS)
    assert (resolved.seed, resolved.outputs.verify, resolved.outputs.opset) == (7, False, 17)
    assert resolved.resources.max_retries == 0
    assert resolved.plan.steps.steps[0].calibrate.percentile == 99.99


def test_ids_of_steps_are_made_unique():
    spec = onnx_spec()
    steps = [pb.Step(fold_batch_norms=pb.FoldBatchNorms(), id="calibrate"), CALIBRATE]
    with_steps(*steps)(spec)
    assert [step.id for step in resolve(spec, DEFAULTS).plan.steps.steps] == [
        "calibrate",
        "calibrate_2",
    ]
