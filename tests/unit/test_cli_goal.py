"""How people see a guided job, from messages alone."""

import pytest

from lighten import v1 as pb
from lighten.cli.render.advice import advice
from lighten.cli.render.goal import goal_text
from lighten.cli.render.live import render_progress
from lighten.cli.render.plain import PlainView
from lighten.cli.render.progress import JobProgress
from lighten.cli.render.report import comparison, render_result
from tests.support.sample_job import guided_job, stage, trials
from tests.unit.test_cli_render import drawn, numbered, rows

GUIDE = pb.Stage.KIND_GUIDE


def story() -> list[pb.JobEvent]:
    """Two trials finished, and a third under way."""
    naive, failed, best = trials()
    half = pb.Progress(done=50, total=100, unit="samples", fraction=0.5)
    return [
        stage(GUIDE, stage_started=pb.StageStarted(title="Trying candidates")),
        stage(GUIDE, trial_finished=pb.TrialFinished(trial=naive, best=True)),
        stage(GUIDE, trial_finished=pb.TrialFinished(trial=failed)),
        stage(GUIDE, "calibrate", trial="sqnr-ranges", progress=half),
        stage(GUIDE, trial_finished=pb.TrialFinished(trial=best, best=True)),
    ]


@pytest.mark.parametrize(
    ("goal", "metric", "expected"),
    [
        (pb.Goal(max_drop=0.01), pb.METRIC_TOP1, "top-1 at most 1 points below FP32"),
        (pb.Goal(max_drop=0.01), pb.METRIC_COSINE, "cosine at most 0.01 from FP32"),
        (pb.Goal(max_relative_drop=0.02), pb.METRIC_TOP5, "top-5 at most 2 % below FP32's"),
        (pb.Goal(value=18), pb.METRIC_SQNR, "SQNR at least 18.0 dB"),
        (pb.Goal(value=0.02), pb.METRIC_KL_DIVERGENCE, "KL at most 0.02"),
        (pb.Goal(), pb.METRIC_SQNR, "the best SQNR within the budgets"),
    ],
)
def test_a_goal_in_words(goal: pb.Goal, metric: pb.Metric.ValueType, expected: str) -> None:
    assert goal_text(goal, metric) == expected


def test_the_result_shows_the_goal_its_trials_and_why() -> None:
    shown = drawn(render_result(guided_job()))
    table = rows(shown)

    assert "Goal: top-1 at most 1 points below FP32: met  3 trials; the goal was met" in shown
    assert table["naive"] == ["50.0 % ± 10.0", "7.5 dB", "19.2 G", "4.0 s"]
    assert table["★ sqnr-ranges"] == ["85.0 % ± 8.0", "12.5 dB", "19.2 G", "1:15"]
    assert "✘ cle" in shown
    assert "no two convolutions follow each other" in shown
    assert "Activations alone cost 5.1 dB, weights alone 0.4 dB." in shown


def test_a_missed_goal_says_so_and_what_to_give_it_next() -> None:
    job = guided_job()
    job.result.goal.met = False
    job.result.goal.stop_reason = pb.STOP_REASON_TIME_BUDGET
    assert ": missed  3 trials; the time budget was spent" in drawn(render_result(job))
    assert "time_budget" in advice(job)
    job.result.goal.stop_reason = pb.STOP_REASON_TRIAL_BUDGET
    assert "above 24" in advice(job)
    job.result.goal.stop_reason = pb.STOP_REASON_EXHAUSTED
    assert "max_bops_ratio" in advice(job)
    job.resolved_spec.plan.goal.max_bops_ratio = 2
    assert "int16" in advice(job)


def test_a_goal_without_a_target_is_neither_met_nor_missed() -> None:
    job = guided_job()
    job.resolved_spec.plan.goal.ClearField("max_drop")
    shown = drawn(render_result(job))
    assert "the best top-1 within the budgets  3 trials" in shown


def test_the_live_view_shows_trials_and_the_one_under_way() -> None:
    progress = JobProgress()
    progress.plan(guided_job())
    assert [*progress.stages][4:6] == ["guide", "evaluate"]
    for event in story()[:4]:
        progress.apply(event)
    picture = drawn(render_progress(progress, "*"))
    assert "sqnr-ranges: 50 of 100 samples" in picture
    assert "★ naive" in picture

    progress.apply(story()[4])
    picture = drawn(render_progress(progress, "*"))
    assert "★ sqnr-ranges" in picture
    assert "★ naive" not in picture

    lost = stage(pb.Stage.KIND_LOAD, stage_started=pb.StageStarted())
    lost.attempt = 2
    progress.apply(lost)
    assert not progress.trials


def test_many_trials_leave_the_best_in_sight() -> None:
    progress = JobProgress()
    for number in range(20):
        trial = pb.TrialReport(name=f"trial-{number}", seconds=1)
        finished = pb.TrialFinished(trial=trial, best=number == 3)
        progress.apply(stage(GUIDE, trial_finished=finished))
    picture = drawn(render_progress(progress))
    assert "★ trial-3" in picture
    assert "trial-19" in picture
    assert "trial-11 " not in picture
    assert "and 11 trials before" in picture


def test_plain_lines_tell_of_each_trial() -> None:
    lines: list[str] = []
    view = PlainView(lines.append)
    view.plan(guided_job())
    for event in numbered(story()):
        view.event(event)
    assert [line.partition(" ")[2] for line in lines] == [
        "guide: Trying candidates",
        "trial: naive: top-1 50.0 % ± 10.0, SQNR 7.5 dB: best so far",
        "trial: cle: failed: no two convolutions follow each other",
        "guide: sqnr-ranges: 50 of 100 samples",
        "trial: sqnr-ranges: top-1 85.0 % ± 8.0, SQNR 12.5 dB: goal met, best so far",
    ]


def test_operators_that_run_as_integers_are_counted() -> None:
    job = guided_job()
    job.result.optimized.operators.CopyFrom(
        pb.OperatorCounts(heavy=53, integer_heavy=52, conversions=3, total=70)
    )
    assert rows(drawn(comparison(job)))["integer operators"] == ["52 of 53 heavy"]
