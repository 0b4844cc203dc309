"""What one transaction reads, decides and writes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, tuple_, update

from lighten import v1 as pb
from lighten_service.jobs.errors import ResourceExhausted
from lighten_service.jobs.names import job_not_found
from lighten_service.jobs.ports import Decide, StoreChange
from lighten_service.jobs.record import JobRecord
from lighten_service.store.codec import (
    Values,
    event_row_of,
    inputs_column,
    label_rows_of,
    record_of,
    row_of,
    technique_rows_of,
)
from lighten_service.store.schema import LIGHT_COLUMNS, events, jobs, labels, techniques

_BY_ID = select(*LIGHT_COLUMNS).where(jobs.c.job_id.in_(bindparam("ids", expanding=True)))
_BY_REQUEST = select(*LIGHT_COLUMNS).where(
    tuple_(jobs.c.project, jobs.c.request_id).in_(bindparam("requests", expanding=True))
)
_QUEUED = (
    select(jobs.c.project, func.count())
    .where(jobs.c.state == int(pb.JOB_STATE_QUEUED))
    .where(jobs.c.project.in_(bindparam("projects", expanding=True)))
    .group_by(jobs.c.project)
)
_INSERT = insert(jobs)
_UPDATE = update(jobs).where(
    jobs.c.job_id == bindparam("key"), jobs.c.revision == bindparam("expected")
)
_FORGET_LABELS = delete(labels).where(labels.c.job_id == bindparam("key"))
_FORGET_TECHNIQUES = delete(techniques).where(techniques.c.job_id == bindparam("key"))


class LostRace(Exception):
    """Another writer changed a row between its read and its write: start over."""


@dataclass(slots=True)
class Reads:
    """Rows that a group needs."""

    job_ids: set[str] = field(default_factory=set)
    # (project, request_id).
    requests: set[tuple[str, str]] = field(default_factory=set)
    # Projects whose queue length matters.
    queues: set[str] = field(default_factory=set)


class Batch:
    """Collects what a group changes over one read of the rows concerned, then writes it.

    Requests are applied one after another and see what those before them did. One that raises has
    added nothing, so that no savepoint is needed. ``flush`` writes to each table once.
    """

    def __init__(self, connection: Connection, reads: Reads, now: float) -> None:
        self._connection = connection
        self._reads = reads
        self._now = Timestamp()
        self._now.FromMicroseconds(round(now * 1e6))
        self.changes: list[StoreChange] = []
        self.events_by_kind: Counter[str] = Counter()
        self._events: list[Values] = []
        self._load()

    def create(self, record: JobRecord, first: Sequence[pb.JobEvent], max_queued: int) -> JobRecord:
        """Add a job, or return the one that has its request id. See JobStore.create."""
        self._refresh()
        request = (record.project, record.request_id)
        existing = self._by_request.get(request) if record.request_id else None
        if existing is not None:
            return self.get(existing)
        if max_queued and self._queued[record.project] >= max_queued:
            raise ResourceExhausted(
                "QUEUE_FULL",
                f"project {record.project} has {max_queued} jobs waiting, which is its limit: "
                "wait until some have started, or cancel some",
                retryable=True,
                metadata={"max_queued": str(max_queued)},
            )
        stored = self._keep(None, record, first)
        self._inputs[record.job_id] = record.inputs
        if record.request_id:
            self._by_request[request] = record.job_id
        return stored

    def get(self, job_id: str) -> JobRecord:
        """Return a job that was planned for, as the requests before left it."""
        self._refresh()
        if job_id not in self._current:
            row = self._rows.get(job_id)
            if row is None:
                raise job_not_found(job_id)
            self._current[job_id] = self._stored[job_id] = record_of(row)
        return self._current[job_id]

    def update(self, job_id: str, decide: Decide) -> JobRecord:
        """Change a job as ``decide`` says. See JobStore.update."""
        current = self.get(job_id)
        change = decide(current)
        if change is None:
            return current
        return self._keep(current, change.record, change.events)

    def direct(self) -> Connection:
        """Write what is collected, and return the connection for statements that follow it."""
        self.flush()
        self._stale = True
        return self._connection

    def flush(self) -> None:
        """Write what is collected.

        Raises:
            LostRace: another writer changed a row since it was read.
        """
        changed = [self._current[job_id] for job_id in self._touched]
        self._insert([record for record in changed if record.job_id not in self._stored])
        self._update([record for record in changed if record.job_id in self._stored])
        self._execute(insert(events), self._events)
        self._stored.update((record.job_id, record) for record in changed)
        self._touched.clear()
        self._events.clear()

    # --- reading --------------------------------------------------------------------------------

    def _load(self) -> None:
        self._rows: dict[str, Row[Any]] = {}
        self._by_request: dict[tuple[str, str], str] = {}
        self._queued: Counter[str] = Counter()
        # Records as the database has them, and as they are with what is collected.
        self._stored: dict[str, JobRecord] = {}
        self._current: dict[str, JobRecord] = {}
        # Ids whose two records differ, in the order of their first change.
        self._touched: dict[str, None] = {}
        # Inputs of new jobs. Nothing else has to do with them, so that records go without.
        self._inputs: dict[str, tuple[pb.ResolvedInput, ...]] = {}
        self._stale = False
        reads, execute = self._reads, self._connection.execute
        if reads.job_ids:
            self._take(execute(_BY_ID, {"ids": list(reads.job_ids)}))
        if reads.requests:
            self._take(execute(_BY_REQUEST, {"requests": list(reads.requests)}))
        if reads.queues:
            for project, count in execute(_QUEUED, {"projects": list(reads.queues)}):
                self._queued[project] = count

    def _take(self, rows: Iterable[Row[Any]]) -> None:
        for row in rows:
            self._rows[row.job_id] = row
            if row.request_id:
                self._by_request[row.project, row.request_id] = row.job_id

    def _refresh(self) -> None:
        if self._stale:
            self._load()

    # --- collecting -----------------------------------------------------------------------------

    def _keep(
        self, before: JobRecord | None, record: JobRecord, added: Sequence[pb.JobEvent]
    ) -> JobRecord:
        job = pb.Job()
        job.CopyFrom(record.job)
        job.last_sequence = before.job.last_sequence if before else 0
        job.update_time.CopyFrom(self._now)
        numbered = tuple(self._numbered(job, event) for event in added)
        revision = (before.revision if before else 0) + 1
        stored = replace(record, job=job, inputs=(), revision=revision)

        rows = [event_row_of(record.job_id, event) for event in numbered]
        self._events += rows
        self.events_by_kind.update(row["kind"] for row in rows)
        self._current[record.job_id] = stored
        self._touched[record.job_id] = None
        self._queued[record.project] += _is_queued(stored) - _is_queued(before)
        self.changes.append(StoreChange(record.project, record.job_id, numbered, record=stored))
        return stored

    def _numbered(self, job: pb.Job, event: pb.JobEvent) -> pb.JobEvent:
        job.last_sequence += 1
        numbered = pb.JobEvent()
        numbered.CopyFrom(event)
        numbered.job = job.name
        numbered.sequence = job.last_sequence
        if not numbered.HasField("time"):
            numbered.time.CopyFrom(self._now)
        return numbered

    # --- writing --------------------------------------------------------------------------------

    def _insert(self, records: Sequence[JobRecord]) -> None:
        rows = []
        for record in records:
            inputs = inputs_column(self._inputs.pop(record.job_id))
            rows.append(row_of(record) | {"inputs": inputs, "first_retained": 1})
        self._execute(_INSERT, rows)
        self._execute(insert(labels), [row for record in records for row in label_rows_of(record)])
        self._execute(
            insert(techniques), [row for record in records for row in technique_rows_of(record)]
        )

    def _update(self, records: Sequence[JobRecord]) -> None:
        rows = []
        for record in records:
            row = row_of(record)
            row["key"] = row.pop("job_id")
            row["expected"] = self._stored[record.job_id].revision
            rows.append(row)
            self._update_side_tables(record)
        if rows and self._connection.execute(_UPDATE, rows).rowcount != len(rows):
            raise LostRace

    def _update_side_tables(self, record: JobRecord) -> None:
        old, new, key = self._stored[record.job_id].job, record.job, {"key": record.job_id}
        if old.labels != new.labels:
            self._connection.execute(_FORGET_LABELS, key)
            self._execute(insert(labels), label_rows_of(record))
        if old.techniques != new.techniques:
            self._connection.execute(_FORGET_TECHNIQUES, key)
            self._execute(insert(techniques), technique_rows_of(record))

    def _execute(self, statement: Any, rows: Sequence[Values]) -> None:
        if rows:
            self._connection.execute(statement, rows)


def _is_queued(record: JobRecord | None) -> bool:
    return record is not None and record.job.state == pb.JOB_STATE_QUEUED
