"""The reconciler's view of the jobs that are not finished."""

import heapq
from collections.abc import Iterable, Iterator
from math import inf

from lighten import v1 as pb
from lighten_service.jobs.record import JobRecord

# Between two looks at a launch that waits for its worker, of which the executor tells by itself.
LOOK_SECONDS = 10.0


class LiveJobs:
    """Records by job id, which of them a sweep must look at, and which wait to be launched.

    Thousands of jobs may wait, for capacity or, launched, for a cluster to place them. They rest:
    nobody looks at them or counts them anew until they change, their ``queue_timeout`` is over,
    or, where they have a launch, ``LOOK_SECONDS`` have passed.
    """

    def __init__(self, records: Iterable[JobRecord] = ()) -> None:
        self._records: dict[str, JobRecord] = {}
        self._awake: dict[str, None] = {}
        self._unplaced: dict[str, None] = {}
        # When a resting job is looked at next (Unix seconds), and the same in order of time, where
        # an entry may be out of date.
        self._next_look: dict[str, float] = {}
        self._looks: list[tuple[float, str]] = []
        for record in records:
            self.put(record)

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(self._records.values())

    def get(self, job_id: str) -> JobRecord | None:
        return self._records.get(job_id)

    def unplaced(self, among: Iterable[str] | None = None) -> list[JobRecord]:
        """Return the QUEUED jobs, all or some, that have no launch which the executor knows."""
        if among is None:
            among = self._unplaced
        return [self._records[job_id] for job_id in among if job_id in self._unplaced]

    @property
    def unplaced_count(self) -> int:
        return len(self._unplaced)

    def put(self, record: JobRecord) -> None:
        """Add a job, or replace what was known of it; older than that, it changes nothing."""
        job_id = record.job_id
        known = self._records.get(job_id)
        if known is not None and known.revision > record.revision:
            return
        self.remove(job_id)
        self._records[job_id] = record
        if _is_unplaced(record):
            self._unplaced[job_id] = None
        if _waits_for_worker(record):
            # A first look at once: the executor may know its worker already.
            self._rest(job_id, -inf)
        elif _waits_for_capacity(record):
            self._rest(job_id, _deadline(record))
        else:
            self._awake[job_id] = None

    def remove(self, job_id: str) -> None:
        """Forget a job. No error when it is not there."""
        self._records.pop(job_id, None)
        for index in (self._awake, self._unplaced, self._next_look):
            index.pop(job_id, None)

    def awake(self, now: float) -> list[JobRecord]:
        """Return the jobs for which something can be due at a time (Unix seconds)."""
        awake = [self._records[job_id] for job_id in self._awake]
        while self._looks and self._looks[0][0] <= now:
            at, job_id = heapq.heappop(self._looks)
            if self._next_look.get(job_id) != at:
                continue
            record = self._records[job_id]
            awake.append(record)
            if _waits_for_worker(record):
                deadline = _deadline(record)
                self._rest(job_id, min(now + LOOK_SECONDS, deadline if deadline > now else inf))
            else:
                self._awake[job_id] = None
                del self._next_look[job_id]
        return awake

    def _rest(self, job_id: str, until: float) -> None:
        self._next_look[job_id] = until
        heapq.heappush(self._looks, (until, job_id))


def _is_queued(record: JobRecord) -> bool:
    return record.job.state == pb.JOB_STATE_QUEUED


def _is_unplaced(record: JobRecord) -> bool:
    launch = record.launch
    return _is_queued(record) and (launch is None or launch.ended or not launch.handle)


def _waits_for_worker(record: JobRecord) -> bool:
    launch = record.launch
    if launch is None or launch.ended or launch.spent:
        return False
    return _is_queued(record) and bool(launch.handle)


def _waits_for_capacity(record: JobRecord) -> bool:
    """Whether a job waits for capacity alone: no launch to look after, no backoff to end."""
    free = record.launch is None or record.launch.ended
    return _is_queued(record) and free and record.not_before == 0.0


def _deadline(record: JobRecord) -> float:
    job = record.job
    timeout = job.resolved_spec.resources.queue_timeout
    return job.queue_time.seconds + timeout.seconds + (timeout.nanos + job.queue_time.nanos) / 1e9
