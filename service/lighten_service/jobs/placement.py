"""Gives queued jobs to the executor: by priority, then by age."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from lighten import v1 as pb
from lighten_service.jobs import retries
from lighten_service.jobs.errors import LightenError, ResourceExhausted
from lighten_service.jobs.lifecycle import Lifecycle
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.ports import (
    Executor,
    JobStore,
    LaunchEnd,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from lighten_service.jobs.record import Change, JobRecord, Launch
from lighten_service.jobs.tokens import LaunchClaims
from lighten_service.jobs.transitions import explain, transition

_log = logging.getLogger(__name__)

# Jobs at the head of the queue that are told why they wait; an event for each of thousands would
# only load the store.
MAX_EXPLAINED = 50


class Placement:
    """The launch number is stored first, then the executor starts the launch, then its handle is
    stored. Names derive from (job, launch), so a repeat after a kill finds what is there.
    """

    def __init__(
        self, store: JobStore, executor: Executor, lifecycle: Lifecycle, metrics: JobMetrics
    ) -> None:
        self._store = store
        self._executor = executor
        self._lifecycle = lifecycle
        self._metrics = metrics

    async def place(self, records: Iterable[JobRecord], queued: int) -> bool:
        """Launch every job that the executor admits; tell the others why they wait.

        ``queued``: jobs in QUEUED, those included that are not looked at now.

        Returns False when an error kept a job from being placed: it has to be tried again.
        """
        now = self._lifecycle.clock.now()
        waiting = [record for record in records if _may_launch(record, now) or needs_start(record)]
        ahead = queued - len(waiting)
        done = True
        for position, record in enumerate(sorted(waiting, key=_order), start=ahead):
            try:
                await self._place(record, tell=position < MAX_EXPLAINED)
            except LightenError as error:
                _log.warning("%s waits: %s: %s", record.job.name, error.reason, error.message)
                done = False
        return done

    async def _place(self, record: JobRecord, *, tell: bool) -> None:
        if needs_start(record):
            # Stored by a process that was killed before the executor answered.
            await self._start(record)
            return
        try:
            obstacle = self._executor.admit(record.job.resolved_spec.resources)
        except ResourceExhausted as error:
            await self._refuse(record, error.to_job_error())
            return
        if obstacle is None:
            await self._launch(record)
        elif tell and obstacle != record.job.state_reason:
            await self._explain(record, obstacle)

    async def _launch(self, record: JobRecord) -> None:
        number = (record.launch.number if record.launch else 0) + 1
        now = self._lifecycle.clock.now()

        def claim(row: JobRecord) -> Change | None:
            if not _may_launch(row, now):
                return None
            return Change(replace(row, launch=Launch(number)))

        stored = await self._store.update(record.job_id, claim)
        if needs_start(stored):
            await self._start(stored)

    async def _start(self, record: JobRecord) -> None:
        assert record.launch is not None  # noqa: S101  needs_start has seen it
        number = record.launch.number
        request = LaunchRequest(
            project=record.project,
            job_id=record.job_id,
            name=record.job.name,
            launch=number,
            token=self._lifecycle.signer.launch(LaunchClaims(record.job_id, number)),
            resources=record.job.resolved_spec.resources,
        )
        try:
            handle = await self._executor.launch(request)
        except LightenError as error:
            _log.warning("cannot start a worker for %s: %s", record.job.name, error.message)
            failed = LaunchStatus(LaunchState.ENDED, LaunchEnd.START_FAILED, error.message)
            await self._lifecycle.settle(LaunchRef(record.job_id, number, ""), failed)
            return
        self._metrics.worker_started()
        status = await self._executor.status(LaunchRef(record.job_id, number, handle))
        now = self._lifecycle.clock.now()
        await self._store.update(
            record.job_id, lambda row: placed(row, number, handle, status, now)
        )

    async def _refuse(self, record: JobRecord, error: pb.JobError) -> None:
        now = self._lifecycle.clock.now()

        def fail(row: JobRecord) -> Change | None:
            return retries.fail(row, error, now=now) if _may_launch(row, now) else None

        await self._store.update(record.job_id, fail)

    async def _explain(self, record: JobRecord, obstacle: str) -> None:
        now = self._lifecycle.clock.now()

        def tell(row: JobRecord) -> Change | None:
            return explain(row, obstacle, now=now) if _may_launch(row, now) else None

        await self._store.update(record.job_id, tell)


def placed(
    record: JobRecord, launch: int, handle: str, status: LaunchStatus, now: float
) -> Change | None:
    """Store the executor's answer; None when there is nothing new.

    The worker may have attached before: then only the handle is new.
    """
    newest = record.launch
    if newest is None or newest.number != launch or newest.ended:
        return None
    known = newest.handle == handle
    record = replace(record, launch=replace(newest, handle=handle))
    change: Change | None = None
    if record.job.state == pb.JOB_STATE_QUEUED and not retries.is_spent(record):
        if status.state is LaunchState.PLACED:
            change = transition(record, pb.JOB_STATE_STARTING, reason="worker started", now=now)
        elif status.state is LaunchState.WAITING and status.detail:
            change = explain(record, status.detail, now=now)
    return change or (None if known else Change(record))


def needs_start(record: JobRecord) -> bool:
    """Whether a launch is stored that the executor has not answered for."""
    launch = record.launch
    return (
        record.job.state == pb.JOB_STATE_QUEUED
        and launch is not None
        and not launch.ended
        and not launch.handle
        and not retries.is_spent(record)
    )


def _may_launch(record: JobRecord, now: float) -> bool:
    free = record.launch is None or record.launch.ended
    return record.job.state == pb.JOB_STATE_QUEUED and free and record.not_before <= now


def _order(record: JobRecord) -> tuple[int, int, str]:
    job = record.job
    return (
        -job.resolved_spec.resources.priority,
        job.create_time.ToNanoseconds(),
        record.job_id,
    )
