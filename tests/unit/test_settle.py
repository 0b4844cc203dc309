"""Launches that lose a worker and carry on, against the words of the workers themselves."""

from dataclasses import replace

import pytest

from lighten import v1 as pb
from lighten_service.jobs import attempts, retries
from lighten_service.jobs.attempts import AttemptFenced
from lighten_service.jobs.launch_errors import launch_error
from lighten_service.jobs.placement import placed
from lighten_service.jobs.ports import LaunchEnd, LaunchState, LaunchStatus
from lighten_service.jobs.record import Attempt, Change, JobRecord, Launch
from lighten_service.jobs.retries import RetryPolicy
from lighten_service.jobs.tokens import SessionClaims
from lighten_service.jobs.transitions import request_cancel, timestamp, transition

QUEUED, STARTING, RUNNING = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_STARTING, pb.JOB_STATE_RUNNING)
FAILED, CANCELLED = pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED
POLICY = RetryPolicy(first_pause=2, longest_pause=60)
EVICTED = LaunchStatus(LaunchState.WAITING, LaunchEnd.EVICTED, "disk pressure", instance_id="one")
STOPPED = launch_error(LaunchStatus(LaunchState.WAITING, LaunchEnd.DISRUPTED)).to_job_error()


def queued() -> JobRecord:
    job = pb.Job(name="projects/default/jobs/a")
    job.resolved_spec.resources.max_retries = 2
    record = JobRecord("default", "a", job)
    return transition(record, QUEUED, reason="", now=0.0).record


def starting() -> JobRecord:
    record = replace(queued(), launch=Launch(1, "handle"))
    return transition(record, STARTING, reason="", now=1.0).record


def running() -> JobRecord:
    return after(attempts.join(starting(), 1, "one", known=True, now=2.0))


def after(change: Change | None) -> JobRecord:
    assert change is not None
    return change.record


def settle(record: JobRecord, status: LaunchStatus, now: float = 3.0) -> Change | None:
    return retries.settle(record, 1, status, now=now, policy=POLICY)


def ended(end: LaunchEnd, instance: str = "") -> LaunchStatus:
    return LaunchStatus(LaunchState.ENDED, end, "it ended", instance_id=instance)


def counts(record: JobRecord) -> tuple[int, int]:
    return record.job.crashes, record.job.disruptions


def test_worker_tells_first_then_its_executor_says_why() -> None:
    told = retries.lose(running(), STOPPED, now=3.0, policy=POLICY, disrupted=True).record
    change = settle(told, EVICTED)
    record = after(change)
    assert (record.job.state, counts(record)) == (QUEUED, (0, 1))
    assert record.job.state_reason.startswith("disk pressure")
    assert change is not None
    (event,) = change.events
    assert event.state_changed.error.reason == "WORKER_EVICTED"
    assert settle(record, EVICTED) is None
    # The launch is open for the pod that comes next.
    assert record.launch == Launch(1, "handle")
    second = after(attempts.join(record, 1, "two", known=True, now=9.0))
    assert (second.job.state, second.job.attempt, counts(second)) == (RUNNING, 2, (0, 1))


def test_executor_tells_first_and_the_worker_is_fenced() -> None:
    record = after(settle(running(), EVICTED))
    assert (record.job.state, counts(record)) == (QUEUED, (0, 1))
    claims = SessionClaims("a", 1, 1, "one", expires=99.0)
    with pytest.raises(AttemptFenced):
        attempts.require_current(record, claims)
    with pytest.raises(AttemptFenced):
        attempts.join(record, 1, "one", known=True, now=4.0)
    # Still on its way out, it does not start the job again.
    there = LaunchStatus(LaunchState.PLACED, instance_id="one")
    assert placed(record, 1, "handle", there, 4.0) is None
    other = LaunchStatus(LaunchState.PLACED, instance_id="two")
    assert after(placed(record, 1, "handle", other, 4.0)).job.state == STARTING


@pytest.mark.parametrize("joined", [False, True])
def test_word_of_an_older_worker_changes_nothing(joined: bool) -> None:
    record = after(settle(running(), EVICTED))
    there = LaunchStatus(LaunchState.PLACED, instance_id="two")
    record = after(placed(record, 1, "handle", there, 4.0))
    if joined:
        record = after(attempts.join(record, 1, "two", known=True, now=5.0))
    assert settle(record, EVICTED) is None


def test_worker_that_is_lost_before_it_attaches() -> None:
    change = settle(starting(), EVICTED)
    record = after(change)
    assert (record.job.state, counts(record)) == (QUEUED, (0, 1))
    with pytest.raises(AttemptFenced):
        attempts.join(record, 1, "one", known=True, now=4.0)
    # The launch ends over the same worker: counted once, and no crash.
    record = after(settle(record, ended(LaunchEnd.EXITED, "one")))
    assert counts(record) == (0, 1)
    assert record.launch is not None
    assert record.launch.ended


@pytest.mark.parametrize("instance", ["", "one"])
def test_launch_that_ends_after_its_worker(instance: str) -> None:
    record = after(settle(running(), EVICTED))
    record = after(settle(record, ended(LaunchEnd.CRASHED, instance)))
    assert (record.job.state, counts(record)) == (QUEUED, (0, 1))
    assert record.launch == Launch(1, "handle", ended=True)
    assert settle(record, ended(LaunchEnd.CRASHED, instance)) is None


@pytest.mark.parametrize(
    ("end", "state", "counted"),
    [
        (LaunchEnd.CRASHED, QUEUED, (1, 1)),
        (LaunchEnd.DELETED, QUEUED, (0, 2)),
        (LaunchEnd.OUT_OF_MEMORY, FAILED, (0, 1)),
        (LaunchEnd.IMAGE_FAILED, FAILED, (0, 1)),
    ],
)
def test_launch_that_ends_with_another_worker(
    end: LaunchEnd, state: int, counted: tuple[int, int]
) -> None:
    record = after(settle(running(), EVICTED))
    record = after(settle(record, ended(end, "two")))
    assert (record.job.state, counts(record)) == (state, counted)


@pytest.mark.parametrize("end", [LaunchEnd.OUT_OF_DISK, LaunchEnd.OVERDUE])
def test_worker_was_asked_to_end_for_good(end: LaunchEnd) -> None:
    told = retries.lose(running(), STOPPED, now=3.0, policy=POLICY, disrupted=True).record
    record = after(settle(told, ended(end, "one")))
    assert record.job.state == FAILED
    assert record.job.error.kind == pb.ERROR_KIND_RESOURCE


def test_image_that_is_gone_fails_the_job_whatever_was_lost_before() -> None:
    record = after(settle(running(), EVICTED))
    record = after(settle(record, ended(LaunchEnd.IMAGE_FAILED)))
    assert record.job.error.reason == "IMAGE_NOT_PULLABLE"


@pytest.mark.parametrize("end", [LaunchEnd.DELETED, LaunchEnd.NODE_LOST])
@pytest.mark.parametrize("record", [starting(), running()])
def test_lost_launch_is_a_disruption(record: JobRecord, end: LaunchEnd) -> None:
    after_it = after(settle(record, ended(end, "one")))
    assert (after_it.job.state, counts(after_it)) == (QUEUED, (0, 1))
    assert after_it.launch is not None
    assert after_it.launch.ended


def test_cancelled_job_wants_no_other_worker() -> None:
    cancelling = after(request_cancel(running(), reason="", now=2.5))
    record = after(settle(cancelling, EVICTED))
    assert (record.job.state, counts(record)) == (pb.JOB_STATE_CANCELLING, (0, 0))
    assert record.launch == Launch(1, "handle", spent=True)
    assert settle(record, EVICTED) is None
    with pytest.raises(AttemptFenced):
        attempts.join(record, 1, "two", known=True, now=4.0)
    assert after(settle(record, ended(LaunchEnd.STOPPED))).job.state == CANCELLED


@pytest.mark.parametrize("end", LaunchEnd)
def test_cancelled_job_is_cancelled_however_its_launch_ends(end: LaunchEnd) -> None:
    cancelling = after(request_cancel(running(), reason="", now=2.5))
    assert after(settle(cancelling, ended(end, "one"))).job.state == CANCELLED


def test_no_worker_follows_one_that_failed() -> None:
    fault = pb.JobError(reason="INTERNAL", kind=pb.ERROR_KIND_SYSTEM, retryable=True)
    record = retries.report_failure(running(), fault, now=3.0, policy=POLICY).record
    assert retries.is_spent(record)
    with pytest.raises(AttemptFenced):
        attempts.join(record, 1, "two", known=True, now=4.0)
    assert counts(after(settle(record, ended(LaunchEnd.EXITED, "one")))) == (1, 0)


def test_waiting_without_an_end_is_no_loss() -> None:
    assert settle(running(), LaunchStatus(LaunchState.WAITING, detail="a reason")) is None


def test_disruptions_are_free_until_they_leave_no_time_to_work() -> None:
    assert [POLICY.pause_when_disrupted(number, 0.0) for number in range(1, 8)] == [
        *(0, 0, 0),
        *(2, 4, 8, 16),
    ]
    # A minute of work between them, and they may go on for ever.
    assert POLICY.pause_when_disrupted(500, 500 * 60.0) == 0.0
    assert POLICY.pause_when_disrupted(500, 0.0) == 60.0


def test_job_that_is_always_taken_away_waits_longer_and_longer() -> None:
    record, pauses = running(), []
    for _ in range(5):
        lost = retries.lose(record, STOPPED, now=2.0, policy=POLICY, disrupted=True).record
        pauses.append(lost.not_before - 2.0)
        record = transition(lost, STARTING, reason="", now=2.0).record
        record = transition(record, RUNNING, reason="", now=2.0).record
    assert pauses == [0, 0, 0, 2, 4]
    assert counts(record) == (0, 5)


def test_reasons_to_wait_are_told_ever_more_rarely() -> None:
    record, told = replace(queued(), launch=Launch(1, "handle")), 0
    day = 24 * 3600
    for second in range(0, day, 10):
        status = LaunchStatus(LaunchState.WAITING, detail=f"reason of second {second}")
        change = placed(record, 1, "handle", status, float(second))
        if change is not None:
            told += 1
            change.record.job.update_time.CopyFrom(timestamp(second))
            record = change.record
    # One in ten minutes once it waits for long; the first ones at once.
    assert 100 < told < 250


def test_attempts_of_older_launches_are_no_workers_of_this_one() -> None:
    record = replace(running(), launch=Launch(2, "other"))
    assert record.instances == frozenset()
    assert replace(record, attempts=(Attempt(1, 2, "x"),)).instances == {"x"}


def test_fenced_worker_stores_nothing() -> None:
    record = after(settle(running(), EVICTED))
    record = after(attempts.join(record, 1, "two", known=True, now=4.0))
    old = SessionClaims("a", 1, 1, "one", expires=99.0)
    line = pb.JobEvent(log=pb.LogLine(message="late"))
    with pytest.raises(AttemptFenced):
        attempts.append(record, old, [pb.WorkerEvent(counter=1, event=line)])
    with pytest.raises(AttemptFenced):
        attempts.finish_step(record, old, pb.StepResultRef(step_id="calibrate", attempt=1))
