"""WatchJob: every event of a job, to any number of watchers, read and kept once.

One task hears of every commit and puts the new events into a short list of their job, which all of
its watchers share. A watcher is a cursor: it takes from the list what it has not sent, and reads
the store when it has fallen behind the list. So a slow watcher costs a number, never memory, and
nobody waits for it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from lighten import v1 as pb
from lighten_service.jobs.errors import OutOfRange
from lighten_service.jobs.names import JobName, job_not_found, parse_job
from lighten_service.jobs.ports import JobStore, StoreChange
from lighten_service.jobs.record import TERMINAL_STATES, JobRecord

_RECENT_EVENTS = 512
_RECENT_BYTES = 1 << 20
_READ_AT_ONCE = 200


class _Channel:
    """The newest events of one job, without gaps, as messages that all watchers send."""

    def __init__(self) -> None:
        self.watchers = 0
        self.deleted = False
        self._recent: deque[pb.WatchJobResponse] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking, then wait for it."""
        return self._changed

    def publish(self, change: StoreChange) -> None:
        """Add what a commit appended, and wake all watchers.

        A change without events is a hint that the store has more than the list.
        """
        self.deleted = self.deleted or change.deleted
        if not change.events:
            self._clear()
        for event in change.events:
            self._append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    def after(self, sequence: int) -> Sequence[pb.WatchJobResponse] | None:
        """Return the events above a sequence, or None when only the store can tell."""
        if not self._recent or sequence + 1 < self._first:
            return None
        return [
            self._recent[index] for index in range(sequence + 1 - self._first, len(self._recent))
        ]

    @property
    def _first(self) -> int:
        return self._recent[0].event.sequence

    @property
    def _last(self) -> int:
        return self._recent[-1].event.sequence

    def _append(self, event: pb.JobEvent) -> None:
        if self._recent and event.sequence != self._last + 1:
            # Another replica wrote in between.
            self._clear()
        message = pb.WatchJobResponse(event=event)
        self._recent.append(message)
        self._bytes += message.ByteSize()
        while len(self._recent) > _RECENT_EVENTS or self._bytes > _RECENT_BYTES:
            self._bytes -= self._recent.popleft().ByteSize()

    def _clear(self) -> None:
        self._recent.clear()
        self._bytes = 0


class WatchHub:
    """Hears of every commit, once for the process, and tells those whom it concerns."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._channels: dict[str, _Channel] = {}
        self._dirty: set[DirtyJobs] = set()

    async def run(self, started: asyncio.Event | None = None) -> None:
        """Deliver changes until cancelled. Watch only after ``started`` is set."""
        async with self._store.subscribe() as changes:
            if started is not None:
                started.set()
            async for change in changes:
                self._deliver(change)

    def subscribe(self, project: str) -> "DirtyJobs":
        """Return the set of the project's jobs that change from now on; unsubscribe it after."""
        jobs = DirtyJobs(project)
        self._dirty.add(jobs)
        return jobs

    def unsubscribe(self, jobs: "DirtyJobs") -> None:
        """Fill the set no more."""
        self._dirty.discard(jobs)

    async def watch_job(self, request: pb.WatchJobRequest) -> AsyncIterator[pb.WatchJobResponse]:
        """Yield a snapshot, then every event above ``after_sequence``, to the terminal one.

        Raises:
            NotFound: there is no such job, or it was deleted meanwhile.
            OutOfRange: reason SEQUENCE_OUT_OF_RANGE, ``after_sequence`` is above the newest event.
        """
        name = parse_job(request.name)
        channel = self._channels.setdefault(name.job_id, _Channel())
        channel.watchers += 1
        try:
            record = await self._store.get(name.project, name.job_id)
            _check_position(record, request.after_sequence)
            yield await self._snapshot(record)
            async for response in self._follow(name, channel, record, request.after_sequence):
                yield response
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                self._channels.pop(name.job_id, None)

    async def _follow(
        self, name: JobName, channel: _Channel, record: JobRecord, sequence: int
    ) -> AsyncIterator[pb.WatchJobResponse]:
        end = record.job.last_sequence if record.finished else None
        while end is None or sequence < end:
            changed = channel.changed
            responses = channel.after(sequence)
            if responses is None:
                responses = await self._read(name, sequence)
            for response in responses:
                yield response
                sequence = response.event.sequence
                if response.event.state_changed.to in TERMINAL_STATES:
                    return
            if responses:
                continue
            if end is not None:
                # Retention took the events up to the end.
                return
            if channel.deleted:
                raise job_not_found(name.job_id)
            await changed.wait()

    async def _read(self, name: JobName, sequence: int) -> list[pb.WatchJobResponse]:
        events = await self._store.events(name.job_id, sequence, _READ_AT_ONCE)
        return [pb.WatchJobResponse(event=event) for event in events]

    async def _snapshot(self, record: JobRecord) -> pb.WatchJobResponse:
        return pb.WatchJobResponse(
            snapshot=pb.WatchSnapshot(
                job=record.job,
                last_sequence=record.job.last_sequence,
                first_retained_sequence=await self._store.first_retained(record.job_id),
            )
        )

    def _deliver(self, change: StoreChange) -> None:
        channel = self._channels.get(change.job_id)
        if channel is not None:
            channel.publish(change)
        for jobs in self._dirty:
            if jobs.project == change.project:
                jobs.add(change.job_id)


class DirtyJobs:
    """Ids of jobs that changed since they were taken last; each one once, however often."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._ids: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, job_id: str) -> None:
        self._ids[job_id] = None
        self._some.set()

    async def take(self) -> list[str]:
        """Wait for a change, and return all ids in the order of their first change."""
        await self._some.wait()
        self._some.clear()
        ids, self._ids = list(self._ids), {}
        return ids


def _check_position(record: JobRecord, after: int) -> None:
    last = record.job.last_sequence
    if after > last:
        raise OutOfRange(
            "SEQUENCE_OUT_OF_RANGE",
            f"after_sequence is {after}, and the newest event of the job is {last}",
            field="after_sequence",
        )
