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
        is_settling: Callable[[LaunchRef], bool],
    ) -> None:
        """``report`` takes the end of a launch of which the executor's listener was not told;
        ``is_settling``: whether what it was told of a launch is not stored yet.
        """
        self._store = store
        self._executor = executor
        self._lifecycle = lifecycle
        self._report = report
        self._is_settling = is_settling

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
        if not _live_launch(record):
            return
        if retries.is_spent(record):
            await self._stop(record)
            # A launch that the executor does not know would not end for its listener.
            await self._ask(record)
        elif not needs_start(record):
            status = await self._ask(record)
            if self._lingers(record, status):
                await self._stop(record)

    def _lingers(self, record: JobRecord, status: LaunchStatus) -> bool:
        """Whether a worker that said that it stops is still there after its grace period."""
        left = self._lifecycle.clock.now() - record.job.queue_time.ToNanoseconds() / 1e9
        there = status.state is LaunchState.PLACED and status.instance_id in record.instances
        return there and left >= self._lifecycle.options.cancel_grace

    async def _cancel(self, record: JobRecord) -> None:
        now, options = self._lifecycle.clock.now(), self._lifecycle.options
        if not _live_launch(record):
            await self._store.update(record.job_id, lambda row: _cancelled(row, now))
            return
        asked = record.cancel_requested_at or now
        if not _is_attached(record) or now - asked >= options.cancel_grace:
            await self._stop(record)
            await self._ask(record)

    async def _listen(self, record: JobRecord) -> None:
        """STARTING and RUNNING: a silent worker is looked after."""
        options = self._lifecycle.options
        silence = self._lifecycle.silence(record)
        if silence < options.heartbeat_timeout:
            return
        status = await self._ask(record)
        if status.state in _GONE:
            return
        if _is_without_worker(record, status):
            # The executor's word of it was lost, with the server process that heard it.
            self._report(_ref(record), _displaced(record, status))
            return
        starting = record.job.state == pb.JOB_STATE_STARTING
        if silence >= (options.start_timeout if starting else options.silence_timeout):
            await self._lose(record, silence)

    async def _ask(self, record: JobRecord) -> LaunchStatus:
        """Ask the executor what became of the launch, and store what is new."""
        ref = _ref(record)
        status = await self._executor.status(ref)
        if status.state in _GONE:
            self._report(ref, status)
            return status
        if self._is_settling(ref):
            # First why the worker before had to go, then that another one is there.
            return status
        now = self._lifecycle.clock.now()
        if placed(record, ref.launch, ref.handle, status, now) is not None:
            await self._store.update(
                record.job_id, lambda row: placed(row, ref.launch, ref.handle, status, now)
            )
        return status

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
            error = _overdue("QUEUE_TIMEOUT", "waited", waited, resources.queue_timeout)
            if error is not None and record.job.state_reason:
                error.metadata["waited_for"] = record.job.state_reason
                error.message += f"; it last waited for this: {record.job.state_reason}"
            return error
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


def _is_attached(record: JobRecord) -> bool:
    """Whether a worker of the newest launch attached and may be there still."""
    launch, attempt = record.launch, record.attempt
    if launch is None or attempt is None:
        return False
    return attempt.launch == launch.number and not launch.spent


def _is_without_worker(record: JobRecord, status: LaunchStatus) -> bool:
    """Whether the launch of a job that is STARTING or RUNNING has not the worker that it had."""
    if status.state is LaunchState.WAITING:
        return True
    attempt = record.attempt
    if record.job.state != pb.JOB_STATE_RUNNING or attempt is None:
        return False
    return status.instance_id not in ("", attempt.instance_id)


def _displaced(record: JobRecord, status: LaunchStatus) -> LaunchStatus:
    running = record.job.state == pb.JOB_STATE_RUNNING
    return LaunchStatus(
        LaunchState.WAITING,
        status.end or LaunchEnd.DISRUPTED,
        status.detail or "the worker was replaced",
        status.metadata,
        instance_id=record.attempt.instance_id if running and record.attempt else "",
        log=status.log,
    )


def _ref(record: JobRecord) -> LaunchRef:
    assert record.launch is not None  # noqa: S101  callers have looked
    return LaunchRef(record.job_id, record.launch.number, record.launch.handle)
