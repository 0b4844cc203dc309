"""The table of job states, and what becomes of lost attempts."""

import pytest

from lighten import v1 as pb
from lighten_service.jobs import retries
from lighten_service.jobs.errors import FailedPrecondition, InvalidArgument, Unavailable
from lighten_service.jobs.ports import LaunchEnd, LaunchState, LaunchStatus
from lighten_service.jobs.record import Attempt, Change, JobRecord, Launch
from lighten_service.jobs.retries import RetryPolicy
from lighten_service.jobs.transitions import (
    FOLLOWERS,
    InvalidTransition,
    State,
    explain,
    request_cancel,
    run_seconds,
    transition,
)

QUEUED, STARTING, RUNNING = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_STARTING, pb.JOB_STATE_RUNNING)
CANCELLING, CANCELLED = pb.JOB_STATE_CANCELLING, pb.JOB_STATE_CANCELLED
SUCCEEDED, FAILED = pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED
POLICY = RetryPolicy(first_pause=2, longest_pause=60)
CRASH = Unavailable("WORKER_LOST", "the worker is gone").to_job_error()


def record(state: State = pb.JOB_STATE_UNSPECIFIED, **fields: object) -> JobRecord:
    job = pb.Job(name="projects/default/jobs/a", state=state, attempt=1)
    job.resolved_spec.resources.max_retries = 2
    return JobRecord("default", "a", job, **fields)  # type: ignore[arg-type]


def running(**fields: object) -> JobRecord:
    values: dict[str, object] = {
        "launch": Launch(1, "handle"),
        "attempts": (Attempt(1, 1, "one"),),
        "running_since": 100.0,
        **fields,
    }
    return record(RUNNING, **values)


def states(change: Change) -> list[State]:
    return [event.state_changed.to for event in change.events]


ALLOWED = {
    (pb.JOB_STATE_UNSPECIFIED, QUEUED),
    (QUEUED, STARTING),
    (QUEUED, CANCELLING),
    (QUEUED, FAILED),
    (STARTING, QUEUED),
    (STARTING, RUNNING),
    (STARTING, CANCELLING),
    (STARTING, FAILED),
    (RUNNING, QUEUED),
    (RUNNING, RUNNING),
    (RUNNING, CANCELLING),
    (RUNNING, SUCCEEDED),
    (RUNNING, FAILED),
    (CANCELLING, CANCELLED),
}


@pytest.mark.parametrize("to", [state for state in pb.JobState.values() if state])
@pytest.mark.parametrize("before", pb.JobState.values())
def test_table(before: State, to: State) -> None:
    if (before, to) in ALLOWED:
        change = transition(record(before), to, reason="because", now=5.0)
        (event,) = change.events
        assert change.record.job.state == to
        assert change.record.job.state_reason == event.state_changed.reason == "because"
        assert (getattr(event.state_changed, "from"), event.state_changed.to) == (before, to)
        assert event.time.ToNanoseconds() == 5_000_000_000
    else:
        with pytest.raises(InvalidTransition) as caught:
            transition(record(before), to, reason="because", now=5.0)
        assert isinstance(caught.value, FailedPrecondition)


def test_every_state_has_its_row() -> None:
    assert set(FOLLOWERS) == set(pb.JobState.values())


def test_records_are_values() -> None:
    before = record(QUEUED)
    transition(before, STARTING, reason="", now=1.0)
    assert before.job.state == QUEUED


def test_run_time_is_summed_over_attempts() -> None:
    job = transition(record(STARTING), RUNNING, reason="", now=10.0).record
    job = transition(job, QUEUED, reason="lost", now=15.0).record
    assert (job.run_seconds, job.running_since) == (5.0, None)
    job = transition(job, STARTING, reason="", now=20.0).record
    job = transition(job, RUNNING, reason="", now=30.0).record
    assert run_seconds(job, 31.5) == 6.5
    ended = transition(job, SUCCEEDED, reason="", now=32.0).record
    assert ended.run_seconds == 7.0
    assert ended.job.start_time.seconds == 10
    assert ended.job.queue_time.seconds == 15
    assert ended.job.end_time.seconds == 32


def test_first_to_finish_wins_over_cancel() -> None:
    succeeded = transition(running(), SUCCEEDED, reason="", now=1.0).record
    with pytest.raises(FailedPrecondition) as caught:
        request_cancel(succeeded, reason="", now=2.0)
    assert caught.value.reason == "JOB_FINISHED"
    assert caught.value.metadata["state"] == "SUCCEEDED"


def test_cancel_again_changes_nothing() -> None:
    first = request_cancel(running(), reason="not needed", now=2.0)
    assert first is not None
    assert first.record.cancel_requested_at == 2.0
    assert request_cancel(first.record, reason="", now=3.0) is None
    cancelled = transition(first.record, CANCELLED, reason="", now=4.0).record
    assert request_cancel(cancelled, reason="", now=5.0) is None


def test_explain_tells_each_reason_once() -> None:
    first = explain(record(QUEUED), "waiting for a CPU slot", now=1.0)
    assert first is not None
    assert states(first) == [QUEUED]
    assert explain(first.record, "waiting for a CPU slot", now=2.0) is None


def test_crashes_back_off_and_end() -> None:
    job, pauses = running(), []
    for _ in range(2):
        lost = retries.lose(job, CRASH, now=100.0, policy=POLICY).record
        assert lost.job.state == QUEUED
        pauses.append(lost.not_before - 100.0)
        job = transition(lost, STARTING, reason="", now=100.0).record
        job = transition(job, RUNNING, reason="", now=100.0).record
    assert pauses == [2.0, 4.0]
    failed = retries.lose(job, CRASH, now=100.0, policy=POLICY)
    assert states(failed) == [FAILED]
    assert failed.record.job.crashes == 3
    assert failed.record.job.error.reason == "WORKER_LOST"


def test_longest_pause() -> None:
    assert POLICY.pause(50) == 60.0


def test_disruptions_never_fail_a_job() -> None:
    job = running()
    job.job.disruptions = 50
    lost = retries.lose(job, CRASH, now=1.0, policy=POLICY, disrupted=True).record
    assert (lost.job.state, lost.job.crashes, lost.job.disruptions) == (QUEUED, 0, 51)


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (CRASH, QUEUED),
        (InvalidArgument("INVALID_MODEL", "no").to_job_error(), FAILED),
        (pb.JobError(reason="OUT_OF_MEMORY", kind=pb.ERROR_KIND_RESOURCE), FAILED),
        (pb.JobError(reason="INTERNAL", kind=pb.ERROR_KIND_SYSTEM), FAILED),
    ],
)
def test_only_retryable_faults_of_the_system_are_tried_again(
    error: pb.JobError, after: State
) -> None:
    change = retries.report_failure(running(), error, now=1.0, policy=POLICY)
    assert change.record.job.state == after


@pytest.mark.parametrize(
    ("end", "after", "counts"),
    [
        (LaunchEnd.CRASHED, QUEUED, (1, 0)),
        (LaunchEnd.EXITED, QUEUED, (1, 0)),
        (LaunchEnd.SILENT, QUEUED, (1, 0)),
        (LaunchEnd.DISRUPTED, QUEUED, (0, 1)),
        (LaunchEnd.OUT_OF_MEMORY, FAILED, (0, 0)),
        (LaunchEnd.OUT_OF_DISK, FAILED, (0, 0)),
    ],
)
def test_end_of_the_launch_of_a_running_job(
    end: LaunchEnd, after: State, counts: tuple[int, int]
) -> None:
    status = LaunchStatus(LaunchState.ENDED, end, "it ended")
    change = retries.settle(running(), 1, status, now=1.0, policy=POLICY)
    assert change is not None
    job = change.record.job
    assert (job.state, (job.crashes, job.disruptions)) == (after, counts)
    assert change.record.launch == Launch(1, "handle", ended=True, spent=counts[0] > 0)
    # Told again it changes nothing, and an older launch's end never does.
    assert retries.settle(change.record, 1, status, now=2.0, policy=POLICY) is None
    assert retries.settle(running(), 0, status, now=2.0, policy=POLICY) is None


def test_end_of_the_launch_of_a_cancelled_job() -> None:
    cancelling = request_cancel(running(), reason="", now=1.0)
    assert cancelling is not None
    status = LaunchStatus(LaunchState.ENDED, LaunchEnd.OUT_OF_MEMORY)
    change = retries.settle(cancelling.record, 1, status, now=2.0, policy=POLICY)
    assert change is not None
    assert states(change) == [CANCELLED]


def test_end_of_a_launch_whose_attempt_was_lost_before_counts_once() -> None:
    lost = retries.lose(running(), CRASH, now=1.0, policy=POLICY).record
    assert retries.is_spent(lost)
    status = LaunchStatus(LaunchState.ENDED, LaunchEnd.CRASHED)
    change = retries.settle(lost, 1, status, now=2.0, policy=POLICY)
    assert change is not None
    assert change.record.job.crashes == 1
    assert change.events == ()
