"""The reconciler's view of the jobs that are not finished."""

import heapq
from collections.abc import Iterable, Iterator

from lighten import v1 as pb
from lighten_service.jobs.record import JobRecord


class LiveJobs:
    """Records by job id, and which of them a sweep must look at.

    Thousands of jobs may wait for capacity. They rest: until they change or their
    ``queue_timeout`` is over nothing can be due, so nobody looks at them or counts them anew.
    """

    def __init__(self, records: Iterable[JobRecord] = ()) -> None:
        self._records: dict[str, JobRecord] = {}
        self._awake: dict[str, None] = {}
        # (Unix seconds, job id) of resting jobs; an entry may be out of date.
        self._deadlines: list[tuple[float, str]] = []
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
        if _rests(record):
            heapq.heappush(self._deadlines, (_deadline(record), record.job_id))
        else:
            self._awake[record.job_id] = None

    def remove(self, job_id: str) -> None:
        """Forget a job. No error when it is not there."""
        self._awake.pop(job_id, None)
        record = self._records.pop(job_id, None)
        if record is not None:
            self.queued -= _is_queued(record)

    def awake(self, now: float) -> list[JobRecord]:
        """Return the jobs for which something can be due at a time (Unix seconds)."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, job_id = heapq.heappop(self._deadlines)
            record = self._records.get(job_id)
            if record is not None and _deadline(record) <= now:
                self._awake[job_id] = None
        return [self._records[job_id] for job_id in self._awake]


def _is_queued(record: JobRecord) -> bool:
    return record.job.state == pb.JOB_STATE_QUEUED


def _rests(record: JobRecord) -> bool:
    """Whether a job waits for capacity alone: no launch to look after, no backoff to end."""
    free = record.launch is None or record.launch.ended
    return _is_queued(record) and free and record.not_before == 0.0


def _deadline(record: JobRecord) -> float:
    job = record.job
    timeout = job.resolved_spec.resources.queue_timeout
    return job.queue_time.seconds + timeout.seconds + (timeout.nanos + job.queue_time.nanos) / 1e9
