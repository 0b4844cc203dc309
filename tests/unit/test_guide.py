"""What a goal means, and how candidates are made: without any model."""

import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.spec_rules import check_spec
from lighten_service.worker.guide.diagnosis import Diagnosis
from lighten_service.worker.guide.plans import Candidate, put, quantize, split
from lighten_service.worker.guide.target import Target
from tests.support.specs import onnx_spec

TOP1, SQNR, KL = pb.METRIC_TOP1, pb.METRIC_SQNR, pb.METRIC_KL_DIVERGENCE
CORRECTED = pb.Step(bias_correction=pb.BiasCorrection())
ROUNDED = pb.Step(ada_round=pb.AdaRound())
SCALED = pb.Step(sequential_mse=pb.SequentialMse())
EQUALIZED = pb.Step(cross_layer_equalization=pb.CrossLayerEqualization())


def value(metric: pb.Metric.ValueType, number: float, error: float | None = None):
    return [pb.MetricValue(metric=metric, value=number, samples=100, standard_error=error)]


@pytest.mark.parametrize(
    ("goal", "metric", "threshold"),
    [
        (pb.Goal(max_drop=0.02), TOP1, 0.68),
        (pb.Goal(max_relative_drop=0.1), TOP1, 0.63),
        (pb.Goal(value=0.5), TOP1, 0.5),
        (pb.Goal(max_drop=0.05), pb.METRIC_AGREEMENT, 0.95),
        (pb.Goal(max_relative_drop=0.01), pb.METRIC_COSINE, 0.99),
        (pb.Goal(max_drop=0.1), KL, 0.1),
        (pb.Goal(value=18), SQNR, 18.0),
        (pb.Goal(), SQNR, None),
    ],
)
def test_the_threshold_of_a_goal(goal: pb.Goal, metric: pb.Metric.ValueType, threshold) -> None:
    target = Target.of(goal, metric, value(TOP1, 0.7))
    assert target.threshold == (pytest.approx(threshold) if threshold is not None else None)


def test_a_loss_needs_a_value_of_fp32() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Target.of(pb.Goal(max_drop=0.01), SQNR, value(TOP1, 0.7))
    assert (caught.value.reason, caught.value.field) == (
        "GOAL_NEEDS_REFERENCE",
        "plan.goal.max_drop",
    )


def test_a_metric_that_the_outputs_do_not_have_is_told() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Target(TOP1, 0.5).met(value(SQNR, 20))
    assert (caught.value.reason, caught.value.field) == ("METRIC_NOT_MEASURED", "metric")


def test_divergence_is_met_from_above_and_everything_else_from_below() -> None:
    assert Target(KL, 0.1).met(value(KL, 0.05))
    assert not Target(KL, 0.1).met(value(KL, 0.2))
    assert Target(SQNR, 18).met(value(SQNR, 18))
    assert not Target(SQNR, 18).met(value(SQNR, 17.9))
    assert not Target(SQNR, None).met(value(SQNR, 99))


def test_a_gain_within_the_standard_error_is_none() -> None:
    target = Target(TOP1, None)
    assert target.gain(value(TOP1, 0.72, 0.02), value(TOP1, 0.70, 0.02)) == 0.0
    assert target.gain(value(TOP1, 0.75, 0.02), value(TOP1, 0.70, 0.02)) == pytest.approx(0.05)
    assert Target(SQNR, None).gain(value(SQNR, 10.1), value(SQNR, 10.0)) == pytest.approx(0.1)
    assert Target(KL, None).gain(value(KL, 0.1), value(KL, 0.3)) == pytest.approx(0.2)


def techniques(candidate: Candidate) -> list[str | None]:
    return [step.WhichOneof("technique") for step in candidate.plan.steps.steps]


def test_steps_are_put_where_they_can_work() -> None:
    naive = Candidate.naive(pb.QuantizationConfig())
    candidate = naive
    for label, step in (("b", CORRECTED), ("a", ROUNDED), ("e", EQUALIZED), ("s", SCALED)):
        candidate = candidate.changed(label, "", put(step))
    assert candidate.name == "b+a+e+s"
    assert techniques(candidate) == [
        "fold_batch_norms",
        "cross_layer_equalization",
        "calibrate",
        "sequential_mse",
        "ada_round",
        "bias_correction",
    ]
    assert techniques(naive) == ["fold_batch_norms", "calibrate"]


def test_every_candidate_could_be_submitted() -> None:
    spec = onnx_spec()
    ranges = pb.Calibrate(scheme=pb.RANGE_SCHEME_PERCENTILE, percentile=99.9)
    finer = pb.QuantizationConfig(weight_granularity=pb.GRANULARITY_PER_CHANNEL)
    candidate = Candidate.naive(pb.QuantizationConfig(weights=pb.DATA_TYPE_INT4)).changed(
        "x", "", put(CORRECTED), put(pb.Step(calibrate=ranges)), quantize(finer)
    )
    spec.plan.CopyFrom(candidate.plan)
    check_spec(spec, [])
    _, calibrate, after = split(candidate.plan)
    assert calibrate.calibrate.percentile == 99.9
    assert after[0].bias_correction.max_samples == 128
    assert candidate.plan.quantization.weights == pb.DATA_TYPE_INT4


def test_the_same_change_in_another_order_is_the_same_candidate() -> None:
    naive = Candidate.naive(pb.QuantizationConfig())
    one = naive.changed("a", "", put(CORRECTED)).changed("b", "", put(EQUALIZED))
    other = naive.changed("b", "", put(EQUALIZED)).changed("a", "", put(CORRECTED))
    assert one.key == other.key
    assert one.float_steps != naive.float_steps
    assert one.types == naive.types


def test_a_diagnosis_names_what_is_at_fault() -> None:
    assert "weights at fault" in Diagnosis(weights_db=10, activations_db=20).sentence
    assert "activations at fault" in Diagnosis(weights_db=30, activations_db=20).sentence
    assert "both at fault" in Diagnosis(weights_db=20, activations_db=20).sentence
    assert Diagnosis(weights_db=10, activations_db=20).weights_share == pytest.approx(10 / 11)
