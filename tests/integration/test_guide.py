"""Guided quantization of small real models, on both engines."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service import techniques
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.resolve import resolve_plan
from lighten_service.techniques import Findings, run_step
from lighten_service.worker.context import Cancelled, StepContext
from lighten_service.worker.guide import Guided, Known, guide
from lighten_service.worker.guide import tree as guide_tree
from lighten_service.worker.guide.plans import split
from lighten_service.worker.model import WorkingModel
from tests.support.depthwise_net import DepthwiseNet, pictures
from tests.support.technique_kit import ENGINES, TENSOR, Bench, InMemory, open_engine

SQNR = pb.METRIC_SQNR


class Told:
    """A reporter that keeps trials, and cancels after some of them."""

    def __init__(self, cancel_after: int = 1000) -> None:
        self.trials: list[pb.TrialFinished] = []
        self.events: list[pb.JobEvent] = []
        self._cancel_after = cancel_after

    def send(self, event: pb.JobEvent) -> None:
        self.events.append(event)
        if event.HasField("trial_finished"):
            self.trials.append(event.trial_finished)

    def check(self) -> None:
        if len(self.trials) >= self._cancel_after:
            raise Cancelled


def open_bench(engine: str, scratch: Path) -> Bench:
    plan = pb.Plan(quantization=TENSOR)
    resolve_plan(plan)
    scratch.mkdir(exist_ok=True)
    return Bench(
        open_engine(engine, DepthwiseNet(relu6=True), scratch),
        InMemory(pictures(4)),
        InMemory(pictures(4, seed=7)),
        scratch,
        plan.quantization,
    )


def run_goal(
    bench: Bench,
    goal: pb.Goal,
    *,
    told: Told | None = None,
    metric: pb.Metric.ValueType = SQNR,
    naive: Known | None = None,
) -> Guided:
    context = bench.context(told)
    context.stage = pb.Stage(kind=pb.Stage.KIND_GUIDE)
    if not goal.HasField("time_budget"):
        goal.time_budget.FromSeconds(500)
    if not goal.HasField("max_trials"):
        goal.max_trials = 20
    if not goal.HasField("max_bops_ratio"):
        goal.max_bops_ratio = 1.0
    return guide(context, bench.model, goal, metric=metric, fp32=[], naive=naive)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the steps that candidates run."""
    counts: Counter[str] = Counter()

    def counting(context: StepContext, model: WorkingModel, step: pb.Step) -> Findings:
        counts[step.id] += 1
        return run_step(context, model, step)

    monkeypatch.setattr(guide_tree, "run_step", counting)
    return counts


def replace(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[..., Findings]) -> None:
    """Let a technique do something else."""

    class Other:
        def run(self, context: StepContext, model: WorkingModel, parameters: object) -> Findings:
            return run(context, model, parameters)

    monkeypatch.setattr(techniques, "TECHNIQUES", {**techniques.TECHNIQUES, name: Other()})


def sqnr_db(trial: pb.TrialReport) -> float:
    return next(item.value for item in trial.metrics if item.metric == SQNR)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guide_beats_naive_and_its_plan_gives_the_same_encodings(
    engine: str, tmp_path: Path, ran: Counter[str]
) -> None:
    bench, told = open_bench(engine, tmp_path / "guided"), Told()
    found = run_goal(bench, pb.Goal(max_trials=6), told=told)
    report = found.report
    trials = {trial.name: trial for trial in report.trials}

    assert report.stop_reason == pb.STOP_REASON_TRIAL_BUDGET
    assert sqnr_db(trials[report.winner]) == max(sqnr_db(t) for t in report.trials if t.metrics)
    assert sqnr_db(trials[report.winner]) > sqnr_db(trials["naive"]) + 1
    assert not report.met
    assert "at fault" in report.explanation[0]
    assert report.winner in report.explanation[-1]
    # ReLU6 keeps the layers apart: recorded, and the search went on
    assert "ReLU6" in trials["bias-correction+cle"].failure
    assert [finished.trial.name for finished in told.trials] == [t.name for t in report.trials]
    assert [f.trial.name for f in told.trials if f.best][-1] == report.winner
    # a job that is cancelled leaves the plan of the best in its events
    assert all(finished.trial.HasField("plan") == finished.best for finished in told.trials)
    assert [f.trial.plan for f in told.trials if f.best][-1] == report.plan
    assert report.winner in {event.trial for event in told.events}
    # nothing that two candidates share was done twice
    assert ran["fold_batch_norms"] == 1
    assert ran["cross_layer_equalization"] == 2
    calibrated = {
        tuple(step.SerializeToString(deterministic=True) for step in (*before, calibrate))
        for before, calibrate, _ in (split(t.plan) for t in report.trials if not t.failure)
    }
    assert ran["calibrate"] == len(calibrated)

    again = open_bench(engine, tmp_path / "again")
    again.quantization = report.plan.quantization
    for step in report.plan.steps.steps:
        context = again.context()
        context.stage = pb.Stage(kind=pb.Stage.KIND_STEP, step_id=step.id)
        run_step(context, again.model, step)
    assert again.model.encodings() == found.model.encodings()
    assert [run.report.step for run in found.runs] == list(report.plan.steps.steps)
    assert again.sqnr_db() == pytest.approx(sqnr_db(trials[report.winner]), abs=1e-4)


def test_a_goal_that_is_met_ends_the_search(tmp_path: Path) -> None:
    found = run_goal(open_bench("onnx", tmp_path), pb.Goal(value=16.0))

    assert found.report.met
    assert found.report.stop_reason == pb.STOP_REASON_GOAL_MET
    assert found.report.trials[-1].name == found.report.winner
    assert found.report.trials[-1].met
    assert len(found.report.trials) < 5
    assert found.model.quantized


def test_figures_of_the_naive_model_are_taken_as_they_are(tmp_path: Path) -> None:
    bench = open_bench("onnx", tmp_path)
    known = Known([pb.MetricValue(metric=SQNR, value=42.0, samples=32)], bench.model.statistics())
    found = run_goal(bench, pb.Goal(value=40), naive=known)

    assert (found.report.winner, found.report.met) == ("naive", True)
    assert len(found.report.trials) == 1
    assert sqnr_db(found.report.trials[0]) == 42.0


def test_the_best_model_survives_a_candidate_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_weights(_: StepContext, model: WorkingModel, __: object) -> Findings:
        quantized = model.quantized_model()
        for layer in quantized.layers():
            quantized.set_weight(layer, quantized.weight(layer) * 0)
        raise RuntimeError("the library failed")

    replace(monkeypatch, "bias_correction", break_weights)
    bench = open_bench("onnx", tmp_path)
    found = run_goal(bench, pb.Goal(max_trials=3))

    broken = next(t for t in found.report.trials if "bias-correction" in t.name)
    assert "failed unexpectedly" in broken.failure
    winner = next(t for t in found.report.trials if t.name == found.report.winner)
    bench.model = found.model
    assert bench.sqnr_db() == pytest.approx(sqnr_db(winner), abs=1e-4)


def test_a_candidate_is_given_up_when_the_time_ends_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(context: StepContext, _: WorkingModel, __: object) -> Findings:
        while True:
            context.check()

    replace(monkeypatch, "bias_correction", endless)
    goal = pb.Goal(time_budget=Duration(seconds=3))
    found = run_goal(open_bench("onnx", tmp_path), goal)

    assert found.report.stop_reason == pb.STOP_REASON_TIME_BUDGET
    assert found.report.winner == "naive"
    assert [trial.failure for trial in found.report.trials] == [
        "",
        "the time budget ended before it was measured",
    ]
    assert found.model.quantized


def test_a_cancelled_job_stops_within_a_candidate(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run_goal(open_bench("onnx", tmp_path), pb.Goal(), told=Told(cancel_after=1))


def test_a_metric_that_cannot_be_measured_fails_with_the_field(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        run_goal(open_bench("onnx", tmp_path), pb.Goal(value=0.5), metric=pb.METRIC_TOP1)
    assert (caught.value.reason, caught.value.field) == ("METRIC_NOT_MEASURED", "metric")


def test_wider_types_are_tried_as_far_as_the_goal_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lighten_service.worker.guide import decisions

    for name in ("FIRST", "WEIGHTS", "ACTIVATIONS"):
        monkeypatch.setattr(decisions, name, ())
    monkeypatch.setattr(decisions, "LAST", decisions.LAST[-1:])
    found = run_goal(open_bench("onnx", tmp_path), pb.Goal(max_bops_ratio=2.0))
    naive, *mixed = found.report.trials
    assert found.report.stop_reason == pb.STOP_REASON_EXHAUSTED
    assert [trial.name for trial in mixed] == ["mixed-1.25", "mixed-1.5", "mixed-2"]
    ratios = [trial.bops / naive.bops for trial in mixed if not trial.failure]
    assert ratios
    assert all(ratio <= 2.0 for ratio in ratios)
    assert sqnr_db(mixed[-1]) > sqnr_db(naive)
