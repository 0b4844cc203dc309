"""The loop that keeps jobs moving: places what is queued, looks after what runs, ends what is due.

It is level-triggered: every decision follows from the record in the store and the executor's
answer, so a server that is killed at any point goes on where the records say it was.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace

from lighten_service.jobs.due import Due
from lighten_service.jobs.errors import LightenError, NotFound
from lighten_service.jobs.lifecycle import Lifecycle
from lighten_service.jobs.live import LiveJobs
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.observe import observe
from lighten_service.jobs.placement import Placement
from lighten_service.jobs.ports import (
    Executor,
    JobStore,
    LaunchEnd,
    LaunchRef,
    LaunchState,
    LaunchStatus,
    StoreChange,
)
from lighten_service.jobs.record import JobRecord

_log = logging.getLogger(__name__)

# Jobs that one pass reads again; a flood of them is worked off over several passes.
MAX_READS = 64
PAUSE_WHEN_FLOODED = 0.25

_GONE = frozenset({LaunchState.ENDED, LaunchState.UNKNOWN})


class Reconciler:
    """One for each server process. ``start`` adopts what an earlier process left."""

    def __init__(
        self,
        *,
        store: JobStore,
        executor: Executor,
        lifecycle: Lifecycle,
        metrics: JobMetrics,
    ) -> None:
        self._store = store
        self._executor = executor
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._placement = Placement(store, executor, lifecycle, metrics)
        self._due = Due(store, executor, lifecycle, self._note_end)
        # A view of the live jobs; the store is read again whenever it says that one changed.
        self._live = LiveJobs()
        # Jobs that changed: new ones as they were stored, and those that have to be read.
        self._changed: dict[str, JobRecord] = {}
        self._unread: dict[str, None] = {}
        # Launches that are over: settling one reads storage, so each has a task of its own.
        self._ended: dict[LaunchRef, LaunchStatus] = {}
        self._settling: dict[LaunchRef, asyncio.Task[None]] = {}
        self._capacity_changed = True
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._sweep_at = self._resync_at = 0.0

    async def start(self) -> None:
        """Adopt live launches and begin. Raises Unavailable when the store is out of reach."""
        listening = asyncio.Event()
        self._tasks = [asyncio.create_task(self._listen(listening), name="reconcile-listen")]
        await listening.wait()
        await self._executor.open(self._on_launch)
        await self._resync()
        await self._executor.adopt(
            [
                LaunchRef(record.job_id, record.launch.number, record.launch.handle)
                for record in self._live
                if record.launch is not None and not record.launch.ended
            ]
        )
        self._tasks.append(asyncio.create_task(self._run(), name="reconcile"))

    async def close(self) -> None:
        """Stop. Running workers carry on; the next ``start`` finds them."""
        tasks = [*self._tasks, *self._settling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._executor.close()

    # --- what wakes the loop --------------------------------------------------------------------

    async def _listen(self, listening: asyncio.Event) -> None:
        async with self._store.subscribe() as changes:
            listening.set()
            async for change in changes:
                self._on_change(change)

    def _on_change(self, change: StoreChange) -> None:
        observe(change, self._live.get(change.job_id), self._metrics)
        if change.deleted:
            self._live.remove(change.job_id)
            self._changed.pop(change.job_id, None)
            self._lifecycle.notify(change.job_id)
        elif not change.events or any(event.HasField("state_changed") for event in change.events):
            # Workers' own events change nothing here.
            self._note_change(change)
            self._lifecycle.notify(change.job_id)
            self._wake.set()

    def _note_change(self, change: StoreChange) -> None:
        job_id, record = change.job_id, change.record
        if record is not None and record.launch is None:
            # New, and there may be thousands: whatever is done with it looks at the store again.
            self._changed[job_id] = record
            self._unread.pop(job_id, None)
        else:
            # It may have moved on since.
            self._changed.pop(job_id, None)
            self._unread[job_id] = None

    async def _on_launch(self, ref: LaunchRef, status: LaunchStatus) -> None:
        if status.state in _GONE:
            self._note_end(ref, status)
        else:
            self._unread[ref.job_id] = None
            self._wake.set()

    def _note_end(self, ref: LaunchRef, status: LaunchStatus) -> None:
        # Of a launch that was stopped, why it was stopped says more than that it was.
        if ref not in self._ended or status.end not in (None, LaunchEnd.STOPPED):
            self._ended[ref] = status
        self._capacity_changed = True
        self._wake.set()

    # --- the loop -------------------------------------------------------------------------------

    async def _run(self) -> None:
        tick = self._lifecycle.options.tick
        while True:
            self._wake.clear()
            await self._guard(self._pass(), "a pass")
            if self._unread:
                await asyncio.sleep(min(PAUSE_WHEN_FLOODED, tick))
                continue
            # Not wait_for: in Python 3.11 it loses a cancellation that races with the wake.
            with suppress(TimeoutError):
                async with asyncio.timeout(tick):
                    await self._wake.wait()

    async def _pass(self) -> None:
        self._settle_ended()
        changed = await self._take_changed()
        now = asyncio.get_running_loop().time()
        if now >= self._resync_at:
            self._capacity_changed = True
            await self._resync()
            self._resync_at = now + self._lifecycle.options.resync
        if now >= self._sweep_at:
            self._sweep_at = now + self._lifecycle.options.tick
            read = {record.job_id for record in changed}
            awake = self._live.awake(self._lifecycle.clock.now())
            changed += [record for record in awake if record.job_id not in read]
        for record in changed:
            if not self._due.is_quiet(record):
                await self._guard(self._due.look(record), record.job.name)
        # Unless capacity changed, jobs that were refused before would be refused again.
        candidates = list(self._live) if self._capacity_changed else changed
        self._capacity_changed = False
        if not await self._placement.place(candidates, self._live.queued):
            self._capacity_changed = True

    async def _guard(self, work: Coroutine[None, None, None], what: str) -> None:
        """One job that cannot be helped now must not stop the others; the next sweep tries it."""
        try:
            await work
        except LightenError as error:
            _log.warning("%s waits: %s: %s", what, error.reason, error.message)
        except Exception:
            _log.exception("reconciling %s failed", what)

    def _settle_ended(self) -> None:
        for ref, status in self._ended.items():
            if ref not in self._settling:
                work = self._guard(self._settle(ref, status), ref.job_id)
                self._settling[ref] = asyncio.create_task(work)

    async def _settle(self, ref: LaunchRef, status: LaunchStatus) -> None:
        try:
            with suppress(NotFound):
                await self._lifecycle.settle(ref, status)
            del self._ended[ref]
        finally:
            del self._settling[ref]

    async def _take_changed(self) -> list[JobRecord]:
        """Take up what changed, and return the jobs that are live."""
        changed, self._changed = self._changed, {}
        live = [record for record in changed.values() if self._is_live(record)]
        for job_id in list(self._unread)[:MAX_READS]:
            del self._unread[job_id]
            try:
                record = await self._store.find(job_id)
            except LightenError:
                self._unread[job_id] = None
                # What was taken up is in the view: the next pass places from there.
                self._capacity_changed = True
                raise
            if record is None:
                self._forget(job_id)
            elif self._is_live(record):
                live.append(record)
        return live

    def _is_live(self, record: JobRecord) -> bool:
        """Keep a job that is live, or forget it."""
        if record.finished:
            self._forget(record.job_id)
        else:
            self._live.put(replace(record, inputs=()))
        return not record.finished

    def _forget(self, job_id: str) -> None:
        self._live.remove(job_id)
        self._lifecycle.forget(job_id)

    async def _resync(self) -> None:
        self._live = LiveJobs(await self._store.live())
        self._metrics.jobs_counted(await self._store.counts())
