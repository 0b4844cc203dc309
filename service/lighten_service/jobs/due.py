"""Looks at one live job for what is due: timeouts, silent workers, cancellations."""

from collections.abc import Callable

from google.protobuf.duration_pb2 import Duration

from lighten import v1 as pb
from lighten_service.jobs import retries
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.lifecycle import Lifecycle
from lighten_service.jobs.placement import needs_start, placed
from lighten_service.jobs.ports import (
    Executor,
    JobStore,
    LaunchEnd,
    LaunchRef,
    LaunchState,
    LaunchStatus,
)
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.transitions import run_seconds, transition

_GONE = frozenset({LaunchState.ENDED, LaunchState.UNKNOWN})


class Due:
    """Every method decides again on the newest record before it writes."""

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        lifecycle: Lifecycle,
        report: Callable[[LaunchRef, LaunchStatus], None],
    ) -> None:
        """``report`` takes the end of a launch of which the executor's listener was not told."""
        self._store = store
        self._executor = executor
        self._lifecycle = lifecycle
        self._report = report

    def is_quiet(self, record: JobRecord) -> bool:
        """Whether a job waits for a launch and nothing else can be due."""
        waits = record.job.state == pb.JOB_STATE_QUEUED and not _live_launch(record)
        return waits and self._timed_out(record) is None

    async def look(self, record: JobRecord) -> None:
        """Do what is due for a live job."""
        state = record.job.state
        if state == pb.JOB_STATE_CANCELLING:
            await self._cancel(record)
        elif self._timed_out(record) is not None:
            await self._time_out(record)
        elif state == pb.JOB_STATE_QUEUED:
            await self._queued(record)
        else:
            await self._listen(record)

    async def _queued(self, record: JobRecord) -> None:
        if retries.is_spent(record) and _live_launch(record):
            await self._stop(record)
        elif _live_launch(record) and not needs_start(record):
            await self._ask(record)

    async def _cancel(self, record: JobRecord) -> None:
        now, options = self._lifecycle.clock.now(), self._lifecycle.options
        if not _live_launch(record):
            await self._store.update(record.job_id, lambda row: _cancelled(row, now))
            return
        asked = record.cancel_requested_at or now
        attached = record.launch is not None and (
            record.attempt is not None and record.attempt.launch == record.launch.number
        )
        if not attached or now - asked >= options.cancel_grace:
            await self._stop(record)
            await self._ask(record)

    async def _listen(self, record: JobRecord) -> None:
        """STARTING and RUNNING: a silent worker is looked after."""
        options = self._lifecycle.options
        silence = self._lifecycle.silence(record)
        if silence < options.heartbeat_timeout:
            return
        if await self._ask(record):
            return
        starting = record.job.state == pb.JOB_STATE_STARTING
        if silence >= (options.start_timeout if starting else options.silence_timeout):
            await self._lose(record, silence)

    async def _ask(self, record: JobRecord) -> bool:
        """Ask the executor what became of the launch; return whether it is over."""
        ref = _ref(record)
        status = await self._executor.status(ref)
        if status.state in _GONE:
            self._report(ref, status)
            return True
        now = self._lifecycle.clock.now()
        if placed(record, ref.launch, ref.handle, status, now) is not None:
            await self._store.update(
                record.job_id, lambda row: placed(row, ref.launch, ref.handle, status, now)
            )
        return False

    async def _lose(self, record: JobRecord, silence: float) -> None:
        detail = f"nothing was heard of the worker for {silence:.0f} seconds"
        await self._stop(record)
        # Settling looks for a manifest first, marks the launch as ended, and counts it once.
        self._report(_ref(record), LaunchStatus(LaunchState.ENDED, LaunchEnd.SILENT, detail))

    async def _time_out(self, record: JobRecord) -> None:
        def fail(row: JobRecord) -> Change | None:
            error = self._timed_out(row)
            if error is None:
                return None
            return retries.fail(row, error, now=self._lifecycle.clock.now())

        stored = await self._store.update(record.job_id, fail)
        if stored.finished and _live_launch(stored):
            await self._stop(stored)

    def _timed_out(self, record: JobRecord) -> pb.JobError | None:
        resources, now = record.job.resolved_spec.resources, self._lifecycle.clock.now()
        if record.job.state == pb.JOB_STATE_QUEUED and resources.HasField("queue_timeout"):
            waited = now - record.job.queue_time.ToNanoseconds() / 1e9
            return _overdue("QUEUE_TIMEOUT", "waited", waited, resources.queue_timeout)
        if record.job.state == pb.JOB_STATE_RUNNING and resources.HasField("run_timeout"):
            ran = run_seconds(record, now)
            return _overdue("RUN_TIMEOUT", "ran", ran, resources.run_timeout)
        return None

    async def _stop(self, record: JobRecord) -> None:
        if _live_launch(record):
            await self._executor.stop(
                _ref(record), grace_seconds=self._lifecycle.options.stop_grace
            )


def _overdue(reason: str, verb: str, seconds: float, limit: Duration) -> pb.JobError | None:
    allowed = limit.ToNanoseconds() / 1e9
    if seconds < allowed:
        return None
    field = f"resources.{reason.lower()}"
    return ResourceExhausted(
        reason,
        f"the job {verb} for {seconds:.0f} seconds and {field} allows {allowed:.0f}; allow more",
        field=field,
        metadata={"seconds": f"{seconds:.3f}", "limit_seconds": f"{allowed:.3f}"},
    ).to_job_error()


def _cancelled(record: JobRecord, now: float) -> Change | None:
    if record.job.state != pb.JOB_STATE_CANCELLING or _live_launch(record):
        return None
    return transition(record, pb.JOB_STATE_CANCELLED, reason="cancelled", now=now)


def _live_launch(record: JobRecord) -> bool:
    return record.launch is not None and not record.launch.ended


def _ref(record: JobRecord) -> LaunchRef:
    assert record.launch is not None  # noqa: S101  callers have looked
    return LaunchRef(record.job_id, record.launch.number, record.launch.handle)
