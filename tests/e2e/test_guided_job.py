"""A goal instead of steps, as a user asks for it: real S3, real server, real worker, real AIMET."""

import pytest

import lighten
from lighten import v1 as pb


def run(client: lighten.Client, spec: dict[str, object]) -> tuple[pb.Job, list[pb.JobEvent]]:
    job = client.submit(spec)
    events = list(client.watch(job.name))
    return client.get(job.name), events


def test_a_goal_gives_a_model_its_trials_and_a_plan_to_submit_again(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    onnx_spec["metric"] = "SQNR"
    onnx_spec["plan"] = {"goal": {"value": 99, "time_budget": "300s", "max_trials": 4}}
    job, events = run(client, onnx_spec)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert list(job.techniques) == ["goal"]
    goal = job.result.goal
    assert (goal.met, goal.stop_reason) == (False, pb.STOP_REASON_TRIAL_BUDGET)
    assert goal.trials[0].name == "naive"
    assert goal.trials[0].metrics == job.result.naive.metrics
    told = [event.trial_finished for event in events if event.HasField("trial_finished")]
    assert [finished.trial.name for finished in told] == [trial.name for trial in goal.trials]
    assert {e.trial for e in events if e.stage.kind == pb.Stage.KIND_GUIDE} >= {goal.winner}
    assert all(check.passed for check in job.result.checks)
    assert goal.explanation
    assert goal.plan.quantization.weight_range == pb.WEIGHT_RANGE_EVERY_CPU
    assert (job.result.proof.weights, job.result.proof.unproven) == (3, 0)

    winner = next(trial for trial in goal.trials if trial.name == goal.winner)
    optimized = {item.metric: item.value for item in job.result.optimized.metrics}
    measured = {item.metric: item.value for item in winner.metrics}
    assert measured == pytest.approx(optimized, rel=1e-6)
    assert [step.step for step in job.result.steps] == list(goal.plan.steps.steps)

    spec = pb.JobSpec()
    spec.CopyFrom(job.spec)
    spec.plan.CopyFrom(goal.plan)
    spec.skip_naive = True
    submitted = client.submit(spec)
    again = client.wait(submitted.name)
    assert again.state == pb.JOB_STATE_SUCCEEDED, again.error
    digests = [
        {item.name: item.sha256 for item in one.result.artifacts if item.name.startswith("model.")}
        for one in (job, again)
    ]
    assert digests[0] == digests[1]
    assert "model.encodings" in digests[0]


def test_a_loss_of_accuracy_without_labels_is_refused_before_it_queues(
    client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    del onnx_spec["evaluation"]
    onnx_spec["plan"] = {"goal": {"max_drop": 0.01}}
    with pytest.raises(lighten.errors.InvalidArgument) as caught:
        client.submit(onnx_spec)
    assert [item.field for item in caught.value.violations] == ["spec.plan.goal.max_drop"]
