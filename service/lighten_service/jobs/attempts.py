"""Which worker may speak for a job: the rules of attempts and fencing, and what they may store.

Pure functions over records; ``lifecycle`` applies them. One (job, launch, instance_id) is one
attempt for ever, and only the current one is heard.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from lighten import v1 as pb
from lighten_service.jobs.errors import InvalidArgument, PermissionDenied
from lighten_service.jobs.names import safe_path
from lighten_service.jobs.record import Attempt, Change, JobRecord
from lighten_service.jobs.tokens import SessionClaims
from lighten_service.jobs.transitions import copy_job, transition

# A worker thins its events out to 16 KiB; this leaves room for what the server adds.
MAX_EVENT_BYTES = 20 * 1024
# Of one step result.
MAX_STEP_FILES = 100

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTACHED = frozenset({pb.JOB_STATE_RUNNING, pb.JOB_STATE_CANCELLING})


class AttemptFenced(PermissionDenied):
    """The caller is not the current attempt (any more): nothing that it says is stored."""

    def __init__(self, current: int) -> None:
        super().__init__(
            "ATTEMPT_FENCED",
            "this worker does not have the job any more",
            metadata={"current_attempt": str(current)},
        )
        self.current_attempt = current


def is_current(record: JobRecord, launch: int, instance_id: str) -> bool:
    """Whether a worker is attached as the current attempt."""
    attempt = record.attempt
    return (
        attempt is not None
        and (attempt.launch, attempt.instance_id) == (launch, instance_id)
        and record.job.state in _ATTACHED
    )


def require_current(record: JobRecord, claims: SessionClaims) -> Attempt:
    """Return the current attempt if it is the claims' own. Raises AttemptFenced."""
    attempt = record.attempt
    if (
        attempt is None
        or attempt.number != claims.attempt
        or not is_current(record, claims.launch, claims.instance_id)
    ):
        raise AttemptFenced(record.job.attempt)
    return attempt


def join(
    record: JobRecord, launch: int, instance_id: str, *, known: bool, now: float
) -> Change | None:
    """Attach a worker: None when it continues its attempt, else the change that opens the next.

    ``known``: the executor holds this instance under this launch.

    Raises:
        AttemptFenced: the worker is late, or nobody that the executor knows.
    """
    if is_current(record, launch, instance_id):
        return None
    newest = record.launch
    is_newest = newest is not None and newest.number == launch
    is_open = newest is not None and not newest.ended and not newest.spent
    was_here = instance_id in record.instances
    cancelling = record.job.state == pb.JOB_STATE_CANCELLING
    if record.finished or cancelling or was_here or not (is_newest and is_open) or not known:
        raise AttemptFenced(record.job.attempt)
    return _open(record, launch, instance_id, now)


def append(
    record: JobRecord, claims: SessionClaims, events: Sequence[pb.WorkerEvent]
) -> Change | None:
    """Store a worker's events once each; None when all of them are stored already.

    Raises:
        AttemptFenced: the worker is not the current attempt.
        InvalidArgument: EVENT_GAP, EVENT_TOO_LARGE, EVENT_NOT_ALLOWED.
    """
    attempt = require_current(record, claims)
    acked = attempt.acked_event
    job = copy_job(record.job)
    stored: list[pb.JobEvent] = []
    for item in events:
        if item.counter <= acked:
            continue
        if item.counter != acked + 1:
            raise InvalidArgument("EVENT_GAP", f"event {acked + 1} is missing", field="counter")
        acked = item.counter
        stored.append(_checked(item.event, attempt.number))
        if item.event.HasField("progress") and job.state == pb.JOB_STATE_RUNNING:
            _advance(job, item.event.progress)
    if not stored:
        return None
    attempts = (*record.attempts[:-1], replace(attempt, acked_event=acked))
    return Change(replace(record, job=job, attempts=attempts), stored)


def finish_step(
    record: JobRecord, claims: SessionClaims, result: pb.StepResultRef
) -> Change | None:
    """Keep the newest step result; None when it is known.

    Raises:
        AttemptFenced: the worker is not the current attempt.
        InvalidArgument: INVALID_STEP_RESULT, or INVALID_PATH.
    """
    attempt = require_current(record, claims)
    _check_step_result(record, attempt, result)
    if result == record.step_result:
        return None
    kept = pb.StepResultRef()
    kept.CopyFrom(result)
    return Change(replace(record, step_result=kept))


def _check_step_result(record: JobRecord, attempt: Attempt, result: pb.StepResultRef) -> None:
    steps = [step.id for step in record.job.resolved_spec.plan.steps.steps]
    if result.attempt != attempt.number or result.step_id not in steps:
        raise InvalidArgument(
            "INVALID_STEP_RESULT",
            f'attempt {attempt.number} has no step "{result.step_id}" of attempt {result.attempt}',
            field="step_finished",
        )
    if not 0 < len(result.files) <= MAX_STEP_FILES:
        raise InvalidArgument(
            "INVALID_STEP_RESULT",
            f"a step result has 1 to {MAX_STEP_FILES} files",
            field="step_finished.files",
        )
    for file in result.files:
        safe_path(file.path, "step_finished.files.path")
        if file.bytes < 0 or not _SHA256.fullmatch(file.sha256):
            raise InvalidArgument(
                "INVALID_STEP_RESULT",
                f"{file.path} has no size or no digest",
                field="step_finished.files",
            )


def _open(record: JobRecord, launch: int, instance_id: str, now: float) -> Change:
    events: list[pb.JobEvent] = []
    number = record.job.attempt + 1
    takes_over = record.job.state == pb.JOB_STATE_RUNNING
    if record.job.state == pb.JOB_STATE_QUEUED:
        # The worker is here before the executor's answer is stored.
        started = transition(record, pb.JOB_STATE_STARTING, reason="worker started", now=now)
        record, events = started.record, list(started.events)
    job = copy_job(record.job)
    job.attempt = number
    if takes_over:
        job.disruptions += 1
        job.ClearField("progress")
    attempts = (*record.attempts, Attempt(number, launch, instance_id))
    record = replace(record, job=job, attempts=attempts)
    reason = f"attempt {number} {'took over' if takes_over else 'began'}"
    running = transition(record, pb.JOB_STATE_RUNNING, reason=reason, now=now)
    return Change(running.record, (*events, *running.events))


def _checked(event: pb.JobEvent, attempt: int) -> pb.JobEvent:
    """Return an event as the store takes it."""
    if event.ByteSize() > MAX_EVENT_BYTES:
        raise InvalidArgument(
            "EVENT_TOO_LARGE", f"an event has more than {MAX_EVENT_BYTES} bytes", field="event"
        )
    if event.WhichOneof("payload") in (None, "state_changed"):
        raise InvalidArgument("EVENT_NOT_ALLOWED", "workers do not change states", field="event")
    copy = pb.JobEvent()
    copy.CopyFrom(event)
    copy.attempt = attempt
    copy.ClearField("job")
    copy.ClearField("sequence")
    return copy


def _advance(job: pb.Job, progress: pb.Progress) -> None:
    fraction = max(job.progress.fraction, progress.fraction)
    job.progress.CopyFrom(progress)
    job.progress.fraction = fraction
