"""What becomes of a job whose executor says that its launch, or the worker of it, has ended."""

import logging
from dataclasses import replace

from lighten import v1 as pb
from lighten_service.jobs import manifest, retries
from lighten_service.jobs.manifest import InvalidManifest
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.names import JobName
from lighten_service.jobs.ports import (
    Clock,
    Executor,
    JobStore,
    LaunchRef,
    LaunchState,
    LaunchStatus,
    ObjectStore,
)
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.retries import RetryPolicy
from lighten_service.jobs.transitions import copy_job, transition
from lighten_service.jobs.worker_logs import WorkerLogs

_log = logging.getLogger(__name__)


class Settlement:
    """Safe to repeat and to interrupt at any point.

    Args:
        stop_grace: seconds that a worker which is not needed any more has to end.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        executor: Executor,
        clock: Clock,
        metrics: JobMetrics,
        root_uri: str,
        policy: RetryPolicy,
        stop_grace: float,
    ) -> None:
        self._store = store
        self._objects = objects
        self._executor = executor
        self._clock = clock
        self._metrics = metrics
        self._root = root_uri
        self._policy = policy
        self._stop_grace = stop_grace
        self._logs = WorkerLogs(objects, root_uri)

    async def settle(self, ref: LaunchRef, status: LaunchStatus) -> None:
        """Apply the end of a launch, or (WAITING) of its worker alone.

        A verified manifest of the current attempt makes it a success; otherwise it is lost.

        Raises:
            Unavailable: store, storage or executor is out of reach; say it again.
        """
        record = await self._store.find(ref.job_id)
        if record is None or record.launch is None:
            return
        await self._logs.keep(JobName(record.project, record.job_id), ref.launch, status)
        if record.launch.ended:
            return
        result = await self._result_left_behind(record, ref.launch, status)
        now = self._clock.now()

        def decide(row: JobRecord) -> Change | None:
            if result is not None and _lost_attempt(row, ref.launch, status) == result.attempt:
                return _succeed_without(row, result, status, now)
            return retries.settle(row, ref.launch, status, now=now, policy=self._policy)

        before = record.job.state
        record = await self._store.update(ref.job_id, decide)
        if record.finished and record.launch is not None and not record.launch.ended:
            await self._executor.stop(ref, grace_seconds=self._stop_grace)
        if before != record.job.state and record.job.state != pb.JOB_STATE_SUCCEEDED:
            end = status.end or status.state
            self._metrics.worker_lost(end.value)

    async def _result_left_behind(
        self, record: JobRecord, launch: int, status: LaunchStatus
    ) -> pb.JobResult | None:
        attempt = _lost_attempt(record, launch, status)
        if attempt is None:
            return None
        name = JobName(record.project, record.job_id)
        try:
            return await manifest.read_result(self._objects, self._root, name, attempt, None)
        except InvalidManifest as error:
            _log.info("attempt %d of %s is lost: %s", attempt, name, error.message)
            return None


def succeed(record: JobRecord, result: pb.JobResult, now: float) -> Change:
    """End a job as SUCCEEDED."""
    job = copy_job(record.job)
    job.result.CopyFrom(result)
    if not job.model_sha256:
        model = job.resolved_spec.model.artifact.uri
        job.model_sha256 = result.provenance.input_sha256.get(model, "")
    record = replace(record, job=job)
    return transition(record, pb.JOB_STATE_SUCCEEDED, reason="succeeded", now=now)


def _lost_attempt(record: JobRecord, launch: int, status: LaunchStatus) -> int | None:
    """Return the number of the attempt whose end this is; None when it is not a running one's."""
    current, newest = record.attempt, record.launch
    if record.job.state != pb.JOB_STATE_RUNNING or current is None or newest is None:
        return None
    if (current.launch, newest.number) != (launch, launch):
        return None
    elsewhere = status.instance_id not in ("", current.instance_id)
    if status.state is LaunchState.WAITING and (elsewhere or status.end is None):
        return None
    return current.number


def _succeed_without(
    record: JobRecord, result: pb.JobResult, status: LaunchStatus, now: float
) -> Change:
    """The worker is gone and its manifest is whole: no other one is needed."""
    assert record.launch is not None  # noqa: S101  _lost_attempt has seen it
    over = status.state is not LaunchState.WAITING
    return succeed(
        replace(record, launch=replace(record.launch, ended=over, spent=True)), result, now
    )
