"""The loop that keeps jobs moving: places what is queued, looks after what runs, ends what is due.

It is level-triggered: every decision follows from the record in the store and the executor's
answer, so a server that is killed at any point goes on where the records say it was.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace

from lighten import v1 as pb
from lighten_service.jobs.due import Due
from lighten_service.jobs.endings import Endings
from lighten_service.jobs.errors import LightenError, NotFound
from lighten_service.jobs.lifecycle import Lifecycle
from lighten_service.jobs.live import LiveJobs
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.observe import observe
from lighten_service.jobs.placement import Again, Placement
from lighten_service.jobs.ports import (
    Executor,
    JobStore,
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
# Jobs that one pass looks at, and at once: new ones do not wait for thousands to be looked at.
MAX_LOOKS = 256
LOOKS_AT_ONCE = 16
# Between two counts of jobs by state, for the metrics.
COUNT_SECONDS = 15.0

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
        self._endings = Endings(self._settle)
        self._due = Due(store, executor, lifecycle, self._note_end, self._endings.has)
        # A view of the live jobs, as the newest commits that are known left them.
        self._live = LiveJobs()
        # Jobs that changed: as they were stored, and those that have to be read.
        self._changed: dict[str, JobRecord] = {}
        self._unread: dict[str, None] = {}
        # Jobs to look at, and to place.
        self._to_look: dict[str, None] = {}
        self._to_place: dict[str, None] = {}
        self._placing: asyncio.Task[None] | None = None
        self._capacity_changed = True
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._sweep_at = self._resync_at = self._count_at = 0.0

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
        tasks = [*self._tasks, *([self._placing] if self._placing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._endings.close()
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
        if record is not None:
            # Whatever is done with it decides again on what is stored by then.
            self._changed[job_id] = record
            self._unread.pop(job_id, None)
        else:
            self._changed.pop(job_id, None)
            self._unread[job_id] = None

    async def _on_launch(self, ref: LaunchRef, status: LaunchStatus) -> None:
        if status.state in _GONE or status.end is not None:
            self._note_end(ref, status)
        else:
            self._to_look[ref.job_id] = None
            self._wake.set()

    def _note_end(self, ref: LaunchRef, status: LaunchStatus) -> None:
        self._endings.note(ref, status)
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
        self._endings.work()
        await self._take_changed()
        now = asyncio.get_running_loop().time()
        if now >= self._resync_at:
            self._capacity_changed = True
            await self._resync()
        if now >= self._count_at:
            self._count_at = now + COUNT_SECONDS
            await self._count()
        if now >= self._sweep_at:
            self._sweep_at = now + self._lifecycle.options.tick
            for record in self._live.awake(self._lifecycle.clock.now()):
                self._changed_here(record)
        await self._look()
        self._place()

    def _changed_here(self, record: JobRecord) -> None:
        self._to_look[record.job_id] = None
        self._to_place[record.job_id] = None

    async def _guard(self, work: Coroutine[None, None, None], what: str) -> bool:
        """One job that cannot be helped now must not stop the others; the next sweep tries it.

        Returns whether the work is done.
        """
        try:
            await work
        except LightenError as error:
            _log.warning("%s waits: %s: %s", what, error.reason, error.message)
        except Exception:
            _log.exception("reconciling %s failed", what)
        else:
            return True
        return False

    async def _settle(self, ref: LaunchRef, status: LaunchStatus) -> bool:
        done = await self._guard(self._settle_known(ref, status), ref.job_id)
        self._to_look[ref.job_id] = None
        self._wake.set()
        return done

    async def _settle_known(self, ref: LaunchRef, status: LaunchStatus) -> None:
        with suppress(NotFound):
            await self._lifecycle.settle(ref, status)

    async def _look(self) -> None:
        """Do what is due for some of the jobs to look at."""
        ids = list(self._to_look)[:MAX_LOOKS]
        for job_id in ids:
            del self._to_look[job_id]
        records = (record for job_id in ids if (record := self._live.get(job_id)) is not None)
        loud = iter([record for record in records if not self._due.is_quiet(record)])

        async def look_at_some() -> None:
            for record in loud:
                await self._guard(self._due.look(record), record.job.name)

        await asyncio.gather(*(look_at_some() for _ in range(LOOKS_AT_ONCE)))
        if self._to_look:
            self._wake.set()

    def _place(self) -> None:
        """Begin to place what can be placed, unless that is under way: its end wakes the loop."""
        if self._placing is not None and not self._placing.done():
            return
        # Unless capacity changed, jobs that were refused before would be refused again.
        everything, self._capacity_changed = self._capacity_changed, False
        chosen, self._to_place = self._to_place, {}
        unplaced = self._live.unplaced(None if everything else chosen)
        if unplaced:
            self._placing = asyncio.create_task(self._place_all(unplaced), name="place")

    async def _place_all(self, records: list[JobRecord]) -> None:
        ahead = self._live.unplaced_count - len(records)
        again = Again.LATER
        try:
            again = await self._placement.place(records, ahead)
        finally:
            if self._to_place or self._capacity_changed or again is Again.AT_ONCE:
                self._wake.set()
            # What could not be placed for now is tried again with the next tick.
            self._capacity_changed |= again is not Again.NOT

    async def _take_changed(self) -> None:
        """Bring the view up to date with what changed."""
        changed, self._changed = self._changed, {}
        for record in changed.values():
            self._take(record)
        for job_id in list(self._unread)[:MAX_READS]:
            del self._unread[job_id]
            try:
                stored = await self._store.find(job_id)
            except LightenError:
                self._unread[job_id] = None
                raise
            if stored is None:
                self._forget(job_id)
            else:
                self._take(stored)

    def _take(self, record: JobRecord) -> None:
        """Keep a job that is live, or forget it."""
        if record.finished:
            self._forget(record.job_id)
        else:
            self._live.put(replace(record, inputs=()))
            self._changed_here(record)

    def _forget(self, job_id: str) -> None:
        self._live.remove(job_id)
        self._lifecycle.forget(job_id)

    async def _resync(self) -> None:
        self._live = LiveJobs(await self._store.live())
        self._resync_at = asyncio.get_running_loop().time() + self._lifecycle.options.resync

    async def _count(self) -> None:
        queued = (each.job for each in self._live if each.job.state == pb.JOB_STATE_QUEUED)
        since = min((job.queue_time.ToNanoseconds() for job in queued), default=None)
        self._metrics.queue_waits_since(None if since is None else since / 1e9)
        self._metrics.jobs_counted(await self._store.counts())
