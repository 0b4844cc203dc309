"""What becomes of a job whose attempt or launch is lost: back to the queue, or failed."""

from dataclasses import dataclass, replace

from lighten import v1 as pb
from lighten_service.jobs.launch_errors import launch_error
from lighten_service.jobs.ports import DISRUPTIONS, LaunchEnd, LaunchState, LaunchStatus
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.transitions import copy_job, explain, run_seconds, transition

# Workers that never came to attach.
_NEVER_STARTED = frozenset({LaunchEnd.IMAGE_FAILED, LaunchEnd.CONFIG_INVALID})
# Another try would end the same way.
_FINAL = _NEVER_STARTED | {LaunchEnd.OUT_OF_MEMORY, LaunchEnd.OUT_OF_DISK, LaunchEnd.OVERDUE}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses before the next launch, doubling from ``first_pause``. Seconds.

    After a crash always. Disruptions are nobody's fault and free, up to ``free_disruptions`` and
    one more for every ``work_between`` that the job ran: beyond these it is taken away faster than
    it gets on, and waits.
    """

    first_pause: float = 2.0
    longest_pause: float = 60.0
    free_disruptions: int = 3
    work_between: float = 60.0

    def pause(self, crashes: int) -> float:
        """Return the pause after this many crashes (1 or more)."""
        return min(self.first_pause * 2.0 ** min(crashes - 1, 32), self.longest_pause)

    def pause_when_disrupted(self, disruptions: int, ran: float) -> float:
        """Return the pause after this many disruptions of a job that ran for so long in all."""
        excess = disruptions - self.free_disruptions - int(ran / self.work_between)
        return self.pause(excess) if excess > 0 else 0.0


def is_spent(record: JobRecord) -> bool:
    """Whether the worker of the newest launch failed, and the job waits for the next launch."""
    launch = record.launch
    return record.job.state == pb.JOB_STATE_QUEUED and launch is not None and launch.spent


def lose(
    record: JobRecord,
    error: pb.JobError,
    *,
    now: float,
    policy: RetryPolicy,
    disrupted: bool = False,
) -> Change:
    """Put a job back into the queue after a crash or a disruption.

    Crashes beyond ``max_retries`` fail the job with ``error``; disruptions never do. After a crash
    the launch is spent; after a disruption the executor may place another worker under it.
    """
    job, launch = copy_job(record.job), record.launch
    if disrupted:
        job.disruptions += 1
        pause = policy.pause_when_disrupted(job.disruptions, run_seconds(record, now))
    else:
        job.crashes += 1
        pause = policy.pause(job.crashes)
        launch = replace(launch, spent=True) if launch is not None else None
    record = replace(record, job=job, launch=launch, not_before=now + pause)
    if job.crashes > job.resolved_spec.resources.max_retries and not disrupted:
        return fail(record, error, now=now)
    if job.state == pb.JOB_STATE_QUEUED:
        return explain(record, error.message, now=now, error=error) or Change(record)
    return transition(record, pb.JOB_STATE_QUEUED, reason=error.message, now=now, error=error)


def fail(record: JobRecord, error: pb.JobError, *, now: float) -> Change:
    """End a job as FAILED."""
    return transition(record, pb.JOB_STATE_FAILED, reason=error.message, now=now, error=error)


def report_failure(
    record: JobRecord, error: pb.JobError, *, now: float, policy: RetryPolicy
) -> Change:
    """Apply what a worker reported: faults of the system may be tried again, others not."""
    if error.kind == pb.ERROR_KIND_SYSTEM and error.retryable:
        return lose(record, error, now=now, policy=policy)
    return fail(record, error, now=now)


def settle(
    record: JobRecord, launch: int, status: LaunchStatus, *, now: float, policy: RetryPolicy
) -> Change | None:
    """Apply the end of a launch, or (WAITING) of its worker alone; None when it is known or old.

    The caller has looked for a verified manifest before: here the attempt is lost.
    """
    newest = record.launch
    if newest is None or newest.number != launch or newest.ended:
        return None
    if status.state is LaunchState.WAITING:
        return _displace(record, status, now=now, policy=policy)
    counted = _is_counted(record, status)
    record = replace(record, launch=replace(newest, ended=True))
    if record.finished:
        return Change(record)
    if record.job.state == pb.JOB_STATE_CANCELLING:
        return transition(record, pb.JOB_STATE_CANCELLED, reason="cancelled", now=now)
    error = _error_at(record, status)
    if status.end in _FINAL:  # also where the worker knew only that it had to go
        return fail(record, error, now=now)
    if counted:
        return _tell_more(record, status, now) or Change(record)
    return lose(record, error, now=now, policy=policy, disrupted=status.end in DISRUPTIONS)


def _is_counted(record: JobRecord, status: LaunchStatus) -> bool:
    """Whether the job is back in the queue for the very worker whose end this is."""
    if record.job.state != pb.JOB_STATE_QUEUED:
        return False
    if status.instance_id:
        counted = status.instance_id in record.instances
    else:
        counted = bool(record.instances) and status.end not in _NEVER_STARTED
    return counted or is_spent(record)


def _displace(
    record: JobRecord, status: LaunchStatus, *, now: float, policy: RetryPolicy
) -> Change | None:
    """Apply the loss of a worker whose launch carries on; None when it changes nothing."""
    attempt, launch, gone = record.attempt, record.launch, status.instance_id
    current = attempt.instance_id if attempt is not None else ""
    state = record.job.state
    if launch is None or status.end is None:
        return None
    if state == pb.JOB_STATE_QUEUED:
        return _tell_more(record, status, now)
    if state == pb.JOB_STATE_STARTING:
        if gone in record.instances:
            return None
        record = replace(record, launch=replace(launch, lost=gone))
    elif gone not in ("", current):
        return None
    if state == pb.JOB_STATE_CANCELLING and not launch.spent:
        # The next worker would find nothing to do.
        return Change(replace(record, launch=replace(launch, spent=True)))
    if state not in (pb.JOB_STATE_STARTING, pb.JOB_STATE_RUNNING):
        return None
    return lose(record, _error_at(record, status), now=now, policy=policy, disrupted=True)


def _tell_more(record: JobRecord, status: LaunchStatus, now: float) -> Change | None:
    """The worker itself knew only that it had to go; its executor knows why."""
    if status.end not in DISRUPTIONS or status.end is LaunchEnd.DISRUPTED:
        return None
    error = _error_at(record, status)
    return explain(record, error.message, now=now, error=error)


def _error_at(record: JobRecord, status: LaunchStatus) -> pb.JobError:
    error = launch_error(status).to_job_error()
    if record.job.HasField("progress"):
        error.stage.CopyFrom(record.job.progress.stage)
    return error
