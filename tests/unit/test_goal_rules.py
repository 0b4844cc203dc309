# ruff: noqa: E501 - a table reads best with one case a line
"""What a goal may ask for, and the rules between the parameters of techniques."""

import pytest
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.api.validation import validate
from lighten_service.jobs.capabilities import capabilities
from lighten_service.jobs.errors import InvalidArgument
from lighten_service.jobs.goal_rules import check_budget
from lighten_service.jobs.resolve import ResourceDefaults, resolve, resolve_plan
from lighten_service.jobs.spec_rules import check_spec
from tests.support.specs import onnx_spec

DEFAULTS = ResourceDefaults(
    memory_bytes=1 << 30, scratch_bytes=2 << 30, queue_timeout_seconds=60, run_timeout_seconds=120
)
INT4, INT8, INT16 = pb.DATA_TYPE_INT4, pb.DATA_TYPE_INT8, pb.DATA_TYPE_INT16
LABELLED = pb.Dataset(data=pb.ObjectRef(uri="file:///e.npz"), format=pb.DATASET_FORMAT_NPZ)
PER_TENSOR = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_TENSOR)
BLOCKWISE = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_BLOCKWISE)
FLOAT8 = pb.QuantizationConfig(
    weights=pb.DATA_TYPE_FLOAT8_E4M3, activations=pb.DATA_TYPE_FLOAT8_E4M3
)
CALIBRATE = pb.Step(calibrate=pb.Calibrate())


def goal_spec(
    goal: pb.Goal,
    *,
    metric: pb.Metric.ValueType = pb.METRIC_UNSPECIFIED,
    labelled: bool = False,
    quantization: pb.QuantizationConfig | None = None,
    **fields: object,
) -> pb.JobSpec:
    spec = onnx_spec()
    spec.MergeFrom(pb.JobSpec(**fields))  # type: ignore[arg-type]
    spec.plan.CopyFrom(pb.Plan(goal=goal, quantization=quantization))
    spec.metric = metric
    if labelled:
        spec.evaluation.CopyFrom(LABELLED)
    return spec


def steps_spec(
    *steps: pb.Step, quantization: pb.QuantizationConfig | None = None, **fields: object
) -> pb.JobSpec:
    spec = onnx_spec()
    spec.MergeFrom(pb.JobSpec(**fields))  # type: ignore[arg-type]
    spec.plan.CopyFrom(pb.Plan(steps=pb.Steps(steps=steps), quantization=quantization))
    return spec


def after(**technique: object) -> list[pb.Step]:
    return [CALIBRATE, pb.Step(**technique)]  # type: ignore[arg-type]


def overridden(**fields: object) -> pb.QuantizationConfig:
    fields = {"select": pb.LayerSelector(op_types=["Softmax"])} | fields
    return pb.QuantizationConfig(overrides=[pb.LayerOverride(**fields)])  # type: ignore[arg-type]


def without_calibration(spec: pb.JobSpec) -> pb.JobSpec:
    spec.ClearField("calibration")
    return spec


BAD = [
    (without_calibration(goal_spec(pb.Goal())), "calibration", "is required"),
    (goal_spec(pb.Goal(time_budget=Duration(nanos=999_999_999))), "plan.goal.time_budget", "1 second"),
    (goal_spec(pb.Goal(max_drop=0.01)), "plan.goal.max_drop", "use value"),
    (goal_spec(pb.Goal(max_relative_drop=0.01), metric=pb.METRIC_SQNR, labelled=True), "plan.goal.max_relative_drop", "use value"),
    (goal_spec(pb.Goal(max_relative_drop=0.01), metric=pb.METRIC_KL_DIVERGENCE), "plan.goal.max_relative_drop", "0 for FP32"),
    (goal_spec(pb.Goal(value=0.7), labelled=True), "metric", "is required"),
    (goal_spec(pb.Goal(value=70), metric=pb.METRIC_TOP1, labelled=True), "plan.goal.value", "between 0 and 1"),
    (goal_spec(pb.Goal(value=-0.1), metric=pb.METRIC_KL_DIVERGENCE), "plan.goal.value", "at least 0"),
    (goal_spec(pb.Goal(max_drop=0.01), metric=pb.METRIC_TOP1), "evaluation", "with labels"),
    (goal_spec(pb.Goal(max_bops_ratio=2), quantization=pb.QuantizationConfig(weights=INT16, activations=INT16)), "plan.goal.max_bops_ratio", "must be 1"),
    (goal_spec(pb.Goal(max_bops_ratio=2), quantization=pb.QuantizationConfig(activations=pb.DATA_TYPE_FLOAT16)), "plan.goal.max_bops_ratio", "no integers"),
    (goal_spec(pb.Goal(max_bops_ratio=2), quantization=pb.QuantizationConfig(weights=INT4, weight_granularity=pb.GRANULARITY_LOW_POWER_BLOCKWISE, block_size=16)), "plan.goal.max_bops_ratio", "LOW_POWER_BLOCKWISE"),
    (goal_spec(pb.Goal(max_bops_ratio=2), outputs=pb.Outputs(opset=17)), "outputs.opset", "at least 21 for DATA_TYPE_INT16"),
    (steps_spec(*after(ada_round=pb.AdaRound(beta_start=1.5))), "plan.steps.steps[1].ada_round.beta_start", "1.5 and 2"),
    (steps_spec(*after(ada_round=pb.AdaRound(beta_end=30))), "plan.steps.steps[1].ada_round.beta_end", "20 and 30"),
    (steps_spec(*after(ada_round=pb.AdaRound(layers=pb.LayerSelector()))), "plan.steps.steps[1].ada_round.layers", "selects nothing"),
    (steps_spec(*after(sequential_mse=pb.SequentialMse(layers=pb.LayerSelector()))), "plan.steps.steps[1].sequential_mse.layers", "selects nothing"),
    (steps_spec(*after(ada_round=pb.AdaRound()), quantization=FLOAT8, outputs=pb.Outputs(qdq_onnx=False)), "plan.quantization.weights", "ada_round needs an integer type"),
    (steps_spec(*after(reestimate_batch_norms=pb.ReestimateBatchNorms()), quantization=PER_TENSOR), "plan.quantization.weight_granularity", "PER_CHANNEL"),
    (steps_spec(*after(bias_correction=pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_ANALYTIC, max_samples=8))), "plan.steps.steps[1].bias_correction.max_samples", "reads no data"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision())), "plan.steps.steps[1].mixed_precision", "needs a target"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision(max_bops_ratio=1))), "plan.steps.steps[1].mixed_precision.max_bops_ratio", "above 1"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20, weights=INT4))), "plan.steps.steps[1].mixed_precision.weights", "wider than the plan's DATA_TYPE_INT8"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20, weights=INT8, activations=INT8))), "plan.steps.steps[1].mixed_precision", "no wider type"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20)), outputs=pb.Outputs(opset=20)), "outputs.opset", "INT16"),
    (steps_spec(*after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20)), quantization=pb.QuantizationConfig(weights=INT4, weight_granularity=pb.GRANULARITY_LOW_POWER_BLOCKWISE, block_size=16)), "plan.steps.steps[1].mixed_precision.weights", "LOW_POWER_BLOCKWISE"),
    (steps_spec(CALIBRATE, pb.Step(ada_round=pb.AdaRound()), pb.Step(sequential_mse=pb.SequentialMse())), "plan.steps.steps", "calibrate, sequential_mse, ada_round"),
    (steps_spec(pb.Step(cross_layer_equalization=pb.CrossLayerEqualization(scaling=False)), CALIBRATE), "plan.steps.steps[0].cross_layer_equalization", "nothing left"),
    (steps_spec(pb.Step(cross_layer_equalization=pb.CrossLayerEqualization(scaling=False, high_bias_absorption=pb.HIGH_BIAS_ABSORPTION_ALWAYS)), CALIBRATE), "plan.steps.steps[0].cross_layer_equalization.high_bias_absorption", "scaled pairs"),
    (steps_spec(CALIBRATE, quantization=overridden(leave_float=True, select=pb.LayerSelector())), "plan.quantization.overrides[0].select", "selects nothing"),
    (steps_spec(CALIBRATE, quantization=overridden(leave_float=True, weights=INT8)), "plan.quantization.overrides[0].leave_float", "excludes"),
    (goal_spec(pb.Goal(), quantization=overridden()), "plan.quantization.overrides[0]", "changes nothing"),
    (steps_spec(CALIBRATE, pb.Step(bias_correction=pb.BiasCorrection()), pb.Step(mixed_precision=pb.MixedPrecision(min_sqnr_db=20))), "plan.steps.steps", "calibrate, mixed_precision, bias_correction"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "field", "hint"), BAD)
def test_what_cannot_work_is_refused_with_its_field(spec: pb.JobSpec, field: str, hint: str):
    with pytest.raises(InvalidArgument) as caught:
        check_spec(spec, [])
    found = {item.field: item.description for item in caught.value.violations}
    assert set(found) == {f"spec.{field}"}
    assert hint in found[f"spec.{field}"]


GOOD = [
    goal_spec(pb.Goal(), quantization=overridden(leave_float=True)),
    goal_spec(pb.Goal(value=18), quantization=overridden(activations=INT16)),
    goal_spec(pb.Goal(value=-3), metric=pb.METRIC_SQNR),
    goal_spec(pb.Goal(value=0.02), metric=pb.METRIC_KL_DIVERGENCE),
    goal_spec(pb.Goal(max_drop=0.01), labelled=True),
    goal_spec(pb.Goal(max_relative_drop=0.01), metric=pb.METRIC_TOP5, labelled=True),
    goal_spec(pb.Goal(max_drop=0.05), metric=pb.METRIC_AGREEMENT),
    goal_spec(pb.Goal(max_bops_ratio=2, max_trials=3), quantization=pb.QuantizationConfig(weights=INT4)),
    goal_spec(pb.Goal(), resources=pb.Resources(run_timeout=Duration(seconds=2))),
    steps_spec(*after(mixed_precision=pb.MixedPrecision(max_disagreement=0.05)), quantization=pb.QuantizationConfig(weights=INT4)),
    steps_spec(*after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20, weights=INT8))),
    steps_spec(
        pb.Step(fold_batch_norms=pb.FoldBatchNorms()),
        pb.Step(cross_layer_equalization=pb.CrossLayerEqualization(scaling=False, replace_relu6=True)),
        CALIBRATE,
        pb.Step(mixed_precision=pb.MixedPrecision(max_bops_ratio=1.5)),
        pb.Step(sequential_mse=pb.SequentialMse()),
        pb.Step(ada_round=pb.AdaRound(layers=pb.LayerSelector(op_types=["Conv"]))),
        pb.Step(bias_correction=pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_ANALYTIC)),
        pb.Step(reestimate_batch_norms=pb.ReestimateBatchNorms()),
        pb.Step(analyze_sensitivity=pb.AnalyzeSensitivity()),
    ),
]  # fmt: skip


@pytest.mark.parametrize("spec", GOOD)
def test_a_good_spec_resolves_to_one_that_is_good_and_resolves_to_itself(spec: pb.JobSpec):
    check_spec(spec, [])
    resolved = resolve(spec, DEFAULTS)
    check_budget(resolved)
    check_spec(resolved, [])
    validate(resolved)
    assert resolve(resolved, ResourceDefaults(1 << 31, 1 << 31, 1, 1)) == resolved


def test_a_goal_gets_half_of_the_jobs_time():
    resolved = resolve(goal_spec(pb.Goal()), DEFAULTS)
    assert resolved.plan.goal == pb.Goal(
        time_budget=Duration(seconds=60), max_trials=24, max_bops_ratio=1
    )
    spec = goal_spec(pb.Goal(), resources=pb.Resources(run_timeout=Duration(seconds=15)))
    assert resolve(spec, DEFAULTS).plan.goal.time_budget == Duration(seconds=7, nanos=500_000_000)


def test_a_goal_cannot_have_more_time_than_its_job():
    spec = goal_spec(pb.Goal(time_budget=Duration(seconds=121)))
    check_spec(spec, [])  # the job's time is the server's default
    with pytest.raises(InvalidArgument) as caught:
        check_budget(resolve(spec, DEFAULTS))
    (violation,) = caught.value.violations
    assert violation.field == "spec.plan.goal.time_budget"
    assert "120 s" in violation.description


def test_parameters_that_depend_on_the_plan_are_filled_in():
    plan = steps_spec(
        pb.Step(
            cross_layer_equalization=pb.CrossLayerEqualization(scaling=False, replace_relu6=True)
        ),
        *after(mixed_precision=pb.MixedPrecision(min_sqnr_db=20)),
        pb.Step(bias_correction=pb.BiasCorrection(method=pb.BIAS_CORRECTION_METHOD_ANALYTIC)),
        quantization=pb.QuantizationConfig(weights=INT4, activations=INT16),
    ).plan
    resolve_plan(plan)
    equalize, _, mixed, correct = plan.steps.steps
    assert equalize.cross_layer_equalization.high_bias_absorption == pb.HIGH_BIAS_ABSORPTION_NEVER
    assert (mixed.mixed_precision.weights, mixed.mixed_precision.activations) == (INT8, INT16)
    assert mixed.mixed_precision.max_samples == 64
    assert not correct.bias_correction.HasField("max_samples")
    assert correct.id == "bias_correction"


def test_a_hardware_configuration_says_for_itself_what_is_fused():
    plan = pb.Plan(quantization=pb.QuantizationConfig(hardware_config="htp_v73"))
    resolve_plan(plan)
    assert not plan.quantization.HasField("fuse_activations")
    plan = pb.Plan(quantization=pb.QuantizationConfig(fuse_activations=False))
    resolve_plan(plan)
    assert not plan.quantization.fuse_activations


def test_capabilities_list_every_technique_with_its_parameters():
    answer = capabilities(server_version="1", limits=pb.Limits())
    listed = {item.name: item for item in answer.techniques}
    oneof = pb.Step.DESCRIPTOR.oneofs_by_name["technique"]
    assert set(listed) == {field.name for field in oneof.fields}
    ada_round = {item.name: item for item in listed["ada_round"].parameters}
    assert ada_round["iterations"].bounds.default_value == "2000"
    assert ada_round["layers"].type == "lighten.v1.LayerSelector"
    assert list(listed["reestimate_batch_norms"].info.needs) == [
        pb.NEED_CALIBRATION,
        pb.NEED_BATCH_NORMS,
    ]
    assert all(item.info.summary and item.info.source for item in answer.techniques)
