"""The one table of job states, and the changes that follow it.

Everything here is pure: a function takes a record and returns the ``Change`` that the store then
applies by compare-and-set, so that of two racing changes the first one wins.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition
from lighten_service.jobs.record import TERMINAL_STATES, Change, JobRecord

State: TypeAlias = pb.JobState.ValueType

# From each state, the states that may follow. RUNNING follows itself when another attempt takes
# over. After CANCELLING only CANCELLED follows, whatever the worker reports.
FOLLOWERS: Mapping[State, frozenset[State]] = {
    pb.JOB_STATE_UNSPECIFIED: frozenset({pb.JOB_STATE_QUEUED}),
    pb.JOB_STATE_QUEUED: frozenset(
        {pb.JOB_STATE_STARTING, pb.JOB_STATE_CANCELLING, pb.JOB_STATE_FAILED}
    ),
    pb.JOB_STATE_STARTING: frozenset(
        {
            pb.JOB_STATE_QUEUED,
            pb.JOB_STATE_RUNNING,
            pb.JOB_STATE_CANCELLING,
            pb.JOB_STATE_FAILED,
        }
    ),
    pb.JOB_STATE_RUNNING: frozenset(
        {
            pb.JOB_STATE_QUEUED,
            pb.JOB_STATE_RUNNING,
            pb.JOB_STATE_CANCELLING,
            pb.JOB_STATE_SUCCEEDED,
            pb.JOB_STATE_FAILED,
        }
    ),
    pb.JOB_STATE_CANCELLING: frozenset({pb.JOB_STATE_CANCELLED}),
    pb.JOB_STATE_SUCCEEDED: frozenset(),
    pb.JOB_STATE_FAILED: frozenset(),
    pb.JOB_STATE_CANCELLED: frozenset(),
}


_WITHOUT_WORKER = frozenset({pb.JOB_STATE_QUEUED, pb.JOB_STATE_STARTING})


class InvalidTransition(FailedPrecondition):
    """The table has no such move. Reason JOB_FINISHED from a final state, else INVALID_TRANSITION.

    ``metadata["state"]`` names the state that the job is in.
    """

    def __init__(self, record: JobRecord, to: State) -> None:
        state = state_name(record.job.state)
        super().__init__(
            "JOB_FINISHED" if record.finished else "INVALID_TRANSITION",
            f"the job is {state} and cannot become {state_name(to)}",
            metadata={"state": state},
        )


def state_name(state: State) -> str:
    """Return the name without its prefix, for example ``RUNNING``."""
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")


def timestamp(seconds: float) -> Timestamp:
    """Return Unix seconds as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp


def transition(
    record: JobRecord,
    to: State,
    *,
    reason: str,
    now: float,
    error: pb.JobError | None = None,
) -> Change:
    """Move a job to another state: times, run seconds and the event that tells of it.

    ``error`` is stored with FAILED; with QUEUED it is why an attempt was lost, and stands in the
    event alone. A new job starts from UNSPECIFIED.

    Raises:
        InvalidTransition: the table has no such move.
    """
    before = record.job.state
    if to not in FOLLOWERS[before]:
        raise InvalidTransition(record, to)
    job = copy_job(record.job)
    job.state = to
    job.state_reason = reason
    _set_times(job, to, now)
    if to == pb.JOB_STATE_FAILED and error is not None:
        job.error.CopyFrom(error)
    if before == pb.JOB_STATE_RUNNING:
        job.ClearField("progress")
    after = _count_run_time(replace(record, job=job), before, now)
    if to == pb.JOB_STATE_CANCELLING:
        after = replace(after, cancel_requested_at=now)
    attempt = job.attempt if pb.JOB_STATE_RUNNING in (before, to) else 0
    return Change(after, (_state_event(before, to, reason, now, attempt, error),))


def explain(
    record: JobRecord, reason: str, *, now: float, error: pb.JobError | None = None
) -> Change | None:
    """Give another reason for the state that a job is in; None when the reason is the same.

    ``error``: the reason as programs read it; it stands in the event alone.
    """
    if record.job.state_reason == reason:
        return None
    job = copy_job(record.job)
    job.state_reason = reason
    event = _state_event(job.state, job.state, reason, now, 0, error)
    return Change(replace(record, job=job), (event,))


def request_cancel(record: JobRecord, *, reason: str, now: float) -> Change | None:
    """Ask a job to stop; None when it was asked before or is cancelled.

    Raises:
        InvalidTransition: the job ended otherwise (reason JOB_FINISHED).
    """
    if record.job.state in (pb.JOB_STATE_CANCELLING, pb.JOB_STATE_CANCELLED):
        return None
    if record.launch is not None and record.job.state in _WITHOUT_WORKER:
        # None is there that could stop by itself, and none shall come.
        record = replace(record, launch=replace(record.launch, spent=True))
    return transition(
        record, pb.JOB_STATE_CANCELLING, reason=reason or "cancelled by the caller", now=now
    )


def run_seconds(record: JobRecord, now: float) -> float:
    """Return the time in RUNNING over all attempts so far."""
    current = 0.0 if record.running_since is None else max(now - record.running_since, 0.0)
    return record.run_seconds + current


def _set_times(job: pb.Job, to: State, now: float) -> None:
    if to == pb.JOB_STATE_QUEUED:
        job.queue_time.CopyFrom(timestamp(now))
    elif to == pb.JOB_STATE_RUNNING and not job.HasField("start_time"):
        job.start_time.CopyFrom(timestamp(now))
    elif to in TERMINAL_STATES:
        job.end_time.CopyFrom(timestamp(now))


def _count_run_time(record: JobRecord, before: State, now: float) -> JobRecord:
    if before == pb.JOB_STATE_RUNNING:
        record = replace(record, run_seconds=run_seconds(record, now), running_since=None)
    if record.job.state == pb.JOB_STATE_RUNNING:
        record = replace(record, running_since=now)
    if record.job.state in (pb.JOB_STATE_STARTING, pb.JOB_STATE_RUNNING):
        record = replace(record, last_heartbeat=now)
    return record


def _state_event(
    before: State, to: State, reason: str, now: float, attempt: int, error: pb.JobError | None
) -> pb.JobEvent:
    changed = pb.StateChanged(to=to, reason=reason, error=error)
    setattr(changed, "from", before)  # a keyword in Python
    return pb.JobEvent(time=timestamp(now), attempt=attempt, state_changed=changed)


def copy_job(job: pb.Job) -> pb.Job:
    """Return a copy that may be changed."""
    copy = pb.Job()
    copy.CopyFrom(job)
    return copy
