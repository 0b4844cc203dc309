"""The reconciler's view of the jobs that are not finished."""

from collections.abc import Iterable, Iterator

from lighten import v1 as pb
from lighten_service.jobs.record import JobRecord


class LiveJobs:
    """Records by job id, and how many are QUEUED: thousands may be, and nobody counts them anew
    for each new one.
    """

    def __init__(self, records: Iterable[JobRecord] = ()) -> None:
        self._records: dict[str, JobRecord] = {}
        self.queued = 0
        for record in records:
            self.put(record)

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(self._records.values())

    def get(self, job_id: str) -> JobRecord | None:
        return self._records.get(job_id)

    def put(self, record: JobRecord) -> None:
        """Add a job, or replace what was known of it."""
        self.remove(record.job_id)
        self._records[record.job_id] = record
        self.queued += _is_queued(record)

    def remove(self, job_id: str) -> None:
        """Forget a job. No error when it is not there."""
        record = self._records.pop(job_id, None)
        if record is not None:
            self.queued -= _is_queued(record)


def _is_queued(record: JobRecord) -> bool:
    return record.job.state == pb.JOB_STATE_QUEUED
