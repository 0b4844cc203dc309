"""Gives queued jobs to the executor: by priority, then by age."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum
from time import monotonic

from lighten import v1 as pb
from lighten_service.jobs import retries
from lighten_service.jobs.delays import Delays
from lighten_service.jobs.errors import (
    LaunchDelayed,
    LightenError,
    ResourceExhausted,
    Unavailable,
)
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
# Seconds until another reason to wait is told at the latest.
_LONGEST_UNTOLD = 600.0
TURN_SECONDS = 2.0


class Again(Enum):
    """When ``Placement.place`` wants to be called again with all jobs that wait."""

    NOT = "not"
    # Not all of them had their turn.
    AT_ONCE = "at once"
    # An error kept a job from being placed.
    LATER = "later"


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
        self._delays = Delays()

    async def place(self, records: Iterable[JobRecord], ahead: int) -> Again:
        """Launch every job that the executor admits; tell the others why they wait.

        It ends after ``TURN_SECONDS``, so that a job more urgent than those before it gets on.

        Args:
            ahead: jobs that wait to be launched and are not looked at now.
        """
        now = self._lifecycle.clock.now()
        waiting = [record for record in records if _may_launch(record, now) or needs_start(record)]
        turns = enumerate(sorted(waiting, key=_order), start=ahead)
        lanes = (self._place_some(turns) for _ in range(self._executor.launches_at_once))
        done = all(await asyncio.gather(*lanes))
        if next(turns, None) is not None:
            return Again.AT_ONCE
        return Again.NOT if done else Again.LATER

    async def _place_some(self, turns: Iterator[tuple[int, JobRecord]]) -> bool:
        """Take jobs off the queue for a turn; return whether each could be placed."""
        done, end = True, monotonic() + TURN_SECONDS
        while monotonic() < end and (turn := next(turns, None)) is not None:
            position, record = turn
            try:
                done &= await self._place(record, tell=position < MAX_EXPLAINED)
            except LightenError as error:
                _log.warning("%s waits: %s: %s", record.job.name, error.reason, error.message)
                done = False
            except Exception:
                # A fault of one job must not stop those behind it.
                _log.exception("placing %s failed", record.job.name)
                done = False
        return done

    async def _place(self, record: JobRecord, *, tell: bool) -> bool:
        """Return whether nothing is left to be tried again."""
        resources, now = record.job.resolved_spec.resources, self._lifecycle.clock.now()
        reason = self._delays.reason(resources, now)
        put_off = reason is not None
        if not put_off and not needs_start(record):
            try:
                reason = self._executor.admit(resources)
            except ResourceExhausted as error:
                await self._refuse(record, error.to_job_error())
                return True
        if reason is None:
            try:
                await self._launch(record)
                self._delays.over(resources)
            except LaunchDelayed as error:
                reason, put_off = error.message, True
                self._delays.put_off(resources, reason, now)
        if reason is not None and tell and reason != record.job.state_reason:
            await self._explain(record, reason)
        return not put_off

    async def _launch(self, record: JobRecord) -> None:
        if needs_start(record):
            # Put off before, or stored by a process that was killed before the executor answered;
            # or that is a view of it which is a moment late.
            known = await self._store.find(record.job_id)
            if known is not None and needs_start(known):
                await self._start(known)
            return
        number = (record.launch.number if record.launch else 0) + 1
        now = self._lifecycle.clock.now()

        def claim(row: JobRecord) -> Change | None:
            return Change(replace(row, launch=Launch(number))) if _may_launch(row, now) else None

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
        except LaunchDelayed:
            raise
        except Unavailable as error:
            _log.warning("cannot start a worker for %s: %s", record.job.name, error.message)
            facts = tuple(sorted({**error.metadata, "cause": error.reason}.items()))
            failed = LaunchStatus(LaunchState.ENDED, LaunchEnd.START_FAILED, error.message, facts)
            await self._lifecycle.settle(LaunchRef(record.job_id, number, ""), failed)
            return
        except LightenError as error:
            _log.warning("%s cannot have a worker: %s", record.job.name, error.message)
            await self._refuse_launch(record, number, error.to_job_error())
            return
        self._metrics.worker_started()
        ref = LaunchRef(record.job_id, number, handle)
        status = await self._executor.status(ref)
        now = self._lifecycle.clock.now()
        stored = await self._store.update(
            record.job_id, lambda row: placed(row, number, handle, status, now)
        )
        if stored.finished or stored.launch is None or stored.launch.ended:
            # Given up while it began: whoever stopped it may have come before it was there.
            await self._executor.stop(ref, grace_seconds=self._lifecycle.options.stop_grace)

    async def _refuse(self, record: JobRecord, error: pb.JobError) -> None:
        now = self._lifecycle.clock.now()

        def fail(row: JobRecord) -> Change | None:
            return retries.fail(row, error, now=now) if _may_launch(row, now) else None

        await self._store.update(record.job_id, fail)

    async def _refuse_launch(self, record: JobRecord, number: int, error: pb.JobError) -> None:
        now = self._lifecycle.clock.now()

        def fail(row: JobRecord) -> Change | None:
            launch = row.launch
            if launch is None or launch.number != number or not needs_start(row):
                return None
            row = replace(row, launch=replace(launch, ended=True))
            return retries.fail(row, error, now=now)

        await self._store.update(record.job_id, fail)

    async def _explain(self, record: JobRecord, obstacle: str) -> None:
        now = self._lifecycle.clock.now()

        def tell(row: JobRecord) -> Change | None:
            waits = _may_launch(row, now) or needs_start(row)
            return explain(row, obstacle, now=now) if waits else None

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
    if record.job.state == pb.JOB_STATE_QUEUED and not newest.spent:
        # A worker that was lost before may still be on its way out.
        if status.state is LaunchState.PLACED and status.instance_id not in record.instances:
            change = transition(record, pb.JOB_STATE_STARTING, reason="worker started", now=now)
        elif status.state is LaunchState.WAITING and _tells(status, record, now):
            change = explain(record, status.detail, now=now)
    return change or (None if known else Change(record))


def _tells(status: LaunchStatus, record: JobRecord, now: float) -> bool:
    """Whether to store why a launch waits: ever more rarely, for it may wait for days and its
    scheduler say something else each minute. What it lost (an ``end``) is settled, not told here.
    """
    job = record.job
    told = job.update_time.ToNanoseconds() / 1e9
    waited = now - job.queue_time.ToNanoseconds() / 1e9
    has_news = status.end is None and bool(status.detail)
    return has_news and now - told >= min(waited / 20, _LONGEST_UNTOLD)


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
