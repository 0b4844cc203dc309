"""JobStore over SQLAlchemy Core."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from sqlalchemy import Row, Select, select
from sqlalchemy.exc import SQLAlchemyError

from lighten import v1 as pb
from lighten_service.jobs.errors import Unavailable
from lighten_service.jobs.filter import Filter
from lighten_service.jobs.names import job_not_found
from lighten_service.jobs.ports import Clock, Decide, StoreChange
from lighten_service.jobs.record import JobRecord
from lighten_service.store import queries
from lighten_service.store.backend import Backend
from lighten_service.store.codec import record_of, whole_record_of
from lighten_service.store.commit import Committer, unavailable
from lighten_service.store.hub import Hub
from lighten_service.store.schema import LIGHT_COLUMNS, jobs
from lighten_service.store.writer import GroupWriter
from lighten_service.store.writes import Create, Delete, MakeSecret, Trim, Update
from lighten_service.telemetry.metrics import Metrics

T = TypeVar("T")


class SqlJobStore:
    """The JobStore port; see there for what each method promises.

    Writes go through one thread in groups (``writer``), reads through a small pool of threads
    that sees what was committed. Make it with ``open_store``, on the event loop that uses it.
    """

    def __init__(self, backend: Backend, clock: Clock, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._hub = Hub()
        self._writer = GroupWriter(Committer(backend.writer, clock, metrics).run, self._hub.publish)
        self._readers = ThreadPoolExecutor(backend.readers, thread_name_prefix="store-reader")
        self._closed = False

    async def create(
        self, record: JobRecord, events: Sequence[pb.JobEvent], *, max_queued: int = 0
    ) -> JobRecord:
        return await self._writer.submit(Create(record, events, max_queued))

    async def update(self, job_id: str, decide: Decide) -> JobRecord:
        return await self._writer.submit(Update(job_id, decide))

    async def delete(self, job_id: str) -> None:
        await self._writer.submit(Delete(job_id))

    async def trim(self, finished_before: float) -> int:
        removed = 0
        while True:
            trimmed = await self._writer.submit(Trim(finished_before))
            removed += trimmed.events
            if not trimmed.more:
                return removed

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        return await self._writer.submit(MakeSecret(name, make))

    async def get(self, project: str, job_id: str) -> JobRecord:
        record = await self.find(job_id)
        if record is None or record.project != project:
            raise job_not_found(job_id)
        return record

    async def find(self, job_id: str) -> JobRecord | None:
        query = select(jobs).where(jobs.c.job_id == job_id)
        found = await self._read(query, whole_record_of)
        return found[0] if found else None

    async def find_request(self, project: str, request_id: str) -> JobRecord | None:
        asked = (jobs.c.project == project) & (jobs.c.request_id == request_id)
        found = await self._records(select(*LIGHT_COLUMNS).where(asked))
        return found[0] if found else None

    async def list_jobs(
        self, project: str, where: Filter, *, limit: int, before: tuple[float, str] | None = None
    ) -> list[JobRecord]:
        return await self._records(queries.jobs_of(project, where, limit=limit, before=before))

    async def live(self) -> list[JobRecord]:
        return await self._records(queries.live_jobs())

    async def counts(self) -> dict[pb.JobState.ValueType, int]:
        rows = await self._read(queries.jobs_by_state(), tuple)
        return {cast(pb.JobState.ValueType, state): number for state, number in rows}

    async def events(self, job_id: str, after: int, limit: int) -> list[pb.JobEvent]:
        query = queries.events_of(job_id, after, limit)
        return await self._read(query, lambda row: pb.JobEvent.FromString(row.payload))

    async def first_retained(self, job_id: str) -> int:
        query = select(jobs.c.first_retained).where(jobs.c.job_id == job_id)
        found = await self._read(query, lambda row: cast(int, row.first_retained))
        return found[0] if found else 1

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[StoreChange]]:
        with self._hub.subscribe() as subscription:
            yield subscription

    async def close(self) -> None:
        """Write what was asked for, end the subscriptions, and let the database go."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        self._hub.close()
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._backend.close)

    async def _records(self, query: Select[Any]) -> list[JobRecord]:
        return await self._read(query, record_of)

    async def _read(self, query: Select[Any], decode: Callable[[Row[Any]], T]) -> list[T]:
        if self._closed:
            raise Unavailable("STORE_UNAVAILABLE", "the store is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._select, query, decode)

    def _select(self, query: Select[Any], decode: Callable[[Row[Any]], T]) -> list[T]:
        try:
            with self._backend.reader.connect() as connection:
                return [decode(row) for row in connection.execute(query)]
        except SQLAlchemyError as error:
            self._metrics.store_failed()
            raise unavailable(error) from error
