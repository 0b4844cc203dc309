"""What becomes of a job whose attempt or launch is lost: back to the queue, or failed."""

from dataclasses import dataclass, replace

from lighten import v1 as pb
from lighten_service.jobs.errors import LightenError, ResourceExhausted, Unavailable
from lighten_service.jobs.ports import LaunchEnd, LaunchStatus
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.transitions import copy_job, explain, transition


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pause before the attempt after a crash: ``first_pause``, doubling. Seconds."""

    first_pause: float = 2.0
    longest_pause: float = 60.0

    def pause(self, crashes: int) -> float:
        """Return the pause after this many crashes (1 or more)."""
        return min(self.first_pause * 2.0 ** min(crashes - 1, 32), self.longest_pause)


def is_spent(record: JobRecord) -> bool:
    """Whether the newest launch has had its attempt and the job waits for the next launch."""
    launch, attempt = record.launch, record.attempt
    return (
        record.job.state == pb.JOB_STATE_QUEUED
        and launch is not None
        and attempt is not None
        and attempt.launch == launch.number
    )


def lose(
    record: JobRecord,
    error: pb.JobError,
    *,
    now: float,
    policy: RetryPolicy,
    disrupted: bool = False,
) -> Change:
    """Put a job back into the queue after a crash or a disruption.

    Crashes beyond ``max_retries`` fail the job with ``error``; disruptions never do.
    """
    job = copy_job(record.job)
    pause = 0.0
    if disrupted:
        job.disruptions += 1
    else:
        job.crashes += 1
        pause = policy.pause(job.crashes)
    record = replace(record, job=job, not_before=now + pause)
    if job.crashes > job.resolved_spec.resources.max_retries and not disrupted:
        return fail(record, error, now=now)
    if job.state == pb.JOB_STATE_QUEUED:
        return explain(record, error.message, now=now) or Change(record)
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
    """Apply the end of a launch; None when it is known or an older one.

    The caller has looked for a verified manifest before: here the attempt is lost.
    """
    newest = record.launch
    if newest is None or newest.number != launch or newest.ended:
        return None
    spent = is_spent(record)
    record = replace(record, launch=replace(newest, ended=True))
    if record.finished or spent:
        return Change(record)
    if record.job.state == pb.JOB_STATE_CANCELLING:
        return transition(record, pb.JOB_STATE_CANCELLED, reason="cancelled", now=now)
    error = launch_error(status).to_job_error()
    if record.job.HasField("progress"):
        error.stage.CopyFrom(record.job.progress.stage)
    if status.end in (LaunchEnd.OUT_OF_MEMORY, LaunchEnd.OUT_OF_DISK):
        return fail(record, error, now=now)
    disrupted = status.end is LaunchEnd.DISRUPTED
    return lose(record, error, now=now, policy=policy, disrupted=disrupted)


def launch_error(status: LaunchStatus) -> LightenError:
    """Return why a launch that ended before its job did is an error of the job."""
    metadata = dict(status.metadata)
    if status.end is LaunchEnd.OUT_OF_MEMORY:
        return ResourceExhausted(
            "OUT_OF_MEMORY",
            f"{status.detail}; ask for more with resources.memory_bytes, or make batch_size "
            "smaller",
            field="resources.memory_bytes",
            metadata=metadata,
        )
    if status.end is LaunchEnd.OUT_OF_DISK:
        return ResourceExhausted(
            "OUT_OF_DISK",
            f"{status.detail}; ask for more with resources.scratch_bytes",
            field="resources.scratch_bytes",
            metadata=metadata,
        )
    if status.end is LaunchEnd.DISRUPTED:
        return Unavailable("WORKER_DISRUPTED", status.detail, metadata=metadata)
    if status.end is LaunchEnd.SILENT:
        return Unavailable("WORKER_SILENT", status.detail, metadata=metadata)
    if status.end is LaunchEnd.START_FAILED:
        return Unavailable("WORKER_START_FAILED", status.detail, metadata=metadata)
    return Unavailable("WORKER_LOST", status.detail or "the worker is gone", metadata=metadata)
