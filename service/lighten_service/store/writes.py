"""The requests that the writer takes: one class each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from sqlalchemy import bindparam, delete, func, insert, select, update

from lighten import v1 as pb
from lighten_service.jobs.ports import Decide, StoreChange
from lighten_service.jobs.record import JobRecord
from lighten_service.store.batch import Batch, Reads
from lighten_service.store.schema import events, jobs, secrets

T_co = TypeVar("T_co", covariant=True)

# What retention removes of a finished job (fields of JobEvent.payload), and how many jobs in one
# transaction, so that others do not wait long for it.
_TRIMMED_KINDS = ("progress", "log")
TRIM_JOBS = 100


class Write(ABC, Generic[T_co]):
    """One request to the writer."""

    def plan(self, reads: Reads) -> None:
        """Name the rows that ``apply`` needs, so that a group reads them at once."""

    @abstractmethod
    def apply(self, batch: Batch) -> T_co:
        """Decide and add to the batch, or raise having added nothing. May run again."""


@dataclass(frozen=True, slots=True)
class Create(Write[JobRecord]):
    record: JobRecord
    events: Sequence[pb.JobEvent]
    max_queued: int

    def plan(self, reads: Reads) -> None:
        if self.record.request_id:
            reads.requests.add((self.record.project, self.record.request_id))
        if self.max_queued:
            reads.queues.add(self.record.project)

    def apply(self, batch: Batch) -> JobRecord:
        return batch.create(self.record, self.events, self.max_queued)


@dataclass(frozen=True, slots=True)
class Update(Write[JobRecord]):
    job_id: str
    decide: Decide

    def plan(self, reads: Reads) -> None:
        reads.job_ids.add(self.job_id)

    def apply(self, batch: Batch) -> JobRecord:
        return batch.update(self.job_id, self.decide)


@dataclass(frozen=True, slots=True)
class Delete(Write[None]):
    job_id: str

    def apply(self, batch: Batch) -> None:
        connection = batch.direct()
        this = jobs.c.job_id == self.job_id
        project = connection.scalar(select(jobs.c.project).where(this))
        if project is not None:
            # Events, labels and techniques go with it (ON DELETE CASCADE).
            connection.execute(delete(jobs).where(this))
            batch.changes.append(StoreChange(project, self.job_id, deleted=True))


@dataclass(frozen=True, slots=True)
class MakeSecret(Write[bytes]):
    name: str
    make: Callable[[], bytes]

    def apply(self, batch: Batch) -> bytes:
        connection = batch.direct()
        value = connection.scalar(select(secrets.c.value).where(secrets.c.name == self.name))
        if value is None:
            value = self.make()
            connection.execute(insert(secrets), {"name": self.name, "value": value})
        return cast(bytes, value)


@dataclass(frozen=True, slots=True)
class Trim(Write["Trimmed"]):
    """Removes progress and logs of some jobs that ended before a time (Unix seconds)."""

    finished_before: float

    def apply(self, batch: Batch) -> "Trimmed":
        connection = batch.direct()
        due = (
            select(jobs.c.job_id)
            .where(jobs.c.trim_due < self.finished_before)
            .order_by(jobs.c.trim_due)
            .limit(TRIM_JOBS)
        )
        ids = list(connection.scalars(due))
        removed = events.c.job_id.in_(ids) & events.c.kind.in_(_TRIMMED_KINDS)
        last = select(events.c.job_id, func.max(events.c.sequence)).where(removed)
        first_retained = [
            {"key": job_id, "first_retained": sequence + 1}
            for job_id, sequence in connection.execute(last.group_by(events.c.job_id))
        ]
        number = connection.execute(delete(events).where(removed)).rowcount
        connection.execute(update(jobs).where(jobs.c.job_id.in_(ids)).values(trim_due=None))
        if first_retained:
            this = jobs.c.job_id == bindparam("key")
            connection.execute(update(jobs).where(this), first_retained)
        return Trimmed(events=number, more=len(ids) == TRIM_JOBS)


@dataclass(frozen=True, slots=True)
class Trimmed:
    events: int
    # There may be further jobs to trim.
    more: bool
