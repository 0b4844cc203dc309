"""What the domain needs from the outside; every adapter of a port passes one contract suite."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from lighten import v1 as pb
from lighten_service.jobs.filter import Filter
from lighten_service.jobs.record import Change, JobRecord


class Clock(Protocol):
    def now(self) -> float:
        """Return Unix seconds."""
        ...


# --- jobs and events ----------------------------------------------------------------------------

Decide = Callable[[JobRecord], Change | None]


@dataclass(frozen=True, slots=True)
class StoreChange:
    """Something was committed: a hint to look again, never the truth itself."""

    project: str
    job_id: str
    # The events that the commit appended, when this process made it. Empty from other replicas.
    events: tuple[pb.JobEvent, ...] = ()
    deleted: bool = False
    # The job as the commit left it, when this process made it.
    record: JobRecord | None = None


class JobStore(Protocol):
    """Jobs and their events. Every method is safe to call from many tasks at once.

    ``JobRecord.inputs`` may have megabytes and never changes after ``create``. ``get`` and
    ``find`` alone return it; every other record (``create``, ``find_request``, ``list_jobs``,
    ``live``, ``update`` and what it decides on, ``StoreChange``) has it empty.

    Raises ``Unavailable`` (reason ``STORE_UNAVAILABLE``) when the database cannot be reached.
    """

    async def create(
        self, record: JobRecord, events: Sequence[pb.JobEvent], *, max_queued: int = 0
    ) -> JobRecord:
        """Insert a job with its first events, durably, and return the stored record.

        When the project has a job with this non-empty ``request_id``, nothing is written and that
        job's record is returned: compare ``job_id`` to tell.

        Raises:
            ResourceExhausted: ``max_queued`` (0: no limit) jobs of the project are QUEUED.
        """
        ...

    async def get(self, project: str, job_id: str) -> JobRecord:
        """Return one job. Raises NotFound (reason JOB_NOT_FOUND)."""
        ...

    async def find(self, job_id: str) -> JobRecord | None:
        """Return one job by its id alone (ids are unique over projects)."""
        ...

    async def find_request(self, project: str, request_id: str) -> JobRecord | None:
        """Return the job of the project that was created with this non-empty ``request_id``."""
        ...

    async def list_jobs(
        self, project: str, where: Filter, *, limit: int, before: tuple[float, str] | None = None
    ) -> list[JobRecord]:
        """Return matching jobs, newest first.

        ``before`` is the (JobRecord.create_time, job id) of the last job of the page before.
        """
        ...

    async def live(self) -> list[JobRecord]:
        """Return every job of every project that is not finished, oldest first."""
        ...

    async def counts(self) -> dict[pb.JobState.ValueType, int]:
        """Return the number of jobs by state, over all projects."""
        ...

    async def update(self, job_id: str, decide: Decide) -> JobRecord:
        """Read, decide, and write with its events in one transaction, durably.

        ``decide`` is pure, and quick: it runs on the store's thread, between others. It may run
        more than once (a lost compare-and-set is tried again with the newer record). It returns
        None to leave the job as it is, or raises to refuse; what it raises reaches the caller and
        nothing is written. Returns the record as stored.

        Raises:
            NotFound: reason JOB_NOT_FOUND.
        """
        ...

    async def delete(self, job_id: str) -> None:
        """Remove a job with its events. No error when it is gone already."""
        ...

    async def events(self, job_id: str, after: int, limit: int) -> list[pb.JobEvent]:
        """Return events with a sequence above ``after``, in order."""
        ...

    async def first_retained(self, job_id: str) -> int:
        """Return the sequence from which on no event was removed: 1 when none was."""
        ...

    async def trim(self, finished_before: float) -> int:
        """Delete progress and log events of jobs that ended before a time; return how many."""
        ...

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return a named secret, made and stored on first use."""
        ...

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[StoreChange]]:
        """Deliver a StoreChange for every commit from now on, in commit order."""
        ...

    async def close(self) -> None: ...


# --- objects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    uri: str
    bytes: int
    etag: str


# Who will use a signed URL: a caller outside, or a worker. The host is part of an S3 signature.
Audience = Literal["public", "worker"]


class ObjectStore(Protocol):
    """Bytes under URIs (``s3://bucket/key`` or ``file:///path``). Memory use is bounded.

    Raises everywhere: ``NotFound`` (OBJECT_NOT_FOUND, BUCKET_NOT_FOUND), ``PermissionDenied``
    (OBJECT_FORBIDDEN), ``Unavailable`` (STORAGE_UNAVAILABLE, after retries), ``InvalidArgument``
    (INVALID_URI).
    """

    async def head(self, uri: str) -> ObjectInfo: ...

    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yield all objects below a URI that ends with ``/``, in the order of their names."""
        ...

    def read(self, uri: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield the content in chunks of at most 1 MiB."""
        ...

    async def write(
        self, uri: str, chunks: AsyncIterator[bytes], *, sha256: str | None = None
    ) -> ObjectInfo:
        """Store an object whole or not at all. Raises InvalidArgument (DIGEST_MISMATCH)."""
        ...

    async def delete(self, uri: str) -> None:
        """Delete one object; no error when it is gone."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all objects below a URI that ends with ``/``; return how many."""
        ...

    async def sign_get(self, uri: str, *, expires_seconds: int, audience: Audience) -> str:
        """Return a URL that serves GET with Range. The local folder's serve HEAD too, S3's do not:
        the method is part of the signature.
        """
        ...

    async def sign_put(
        self, uri: str, *, max_bytes: int, expires_seconds: int, audience: Audience
    ) -> str:
        """Return a URL that takes one PUT. ``max_bytes`` is enforced by the local folder alone."""
        ...

    async def begin_upload(self, uri: str) -> str:
        """Open a multi-part upload and return its id."""
        ...

    async def sign_part(
        self,
        uri: str,
        upload_id: str,
        number: int,
        *,
        max_bytes: int,
        expires_seconds: int,
        audience: Audience,
    ) -> str:
        """Return a URL that takes one PUT of part ``number`` (1, 2, 3...)."""
        ...

    async def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        """Join the parts. Again after success: no error."""
        ...

    async def close(self) -> None: ...


# --- executor -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LaunchRef:
    job_id: str
    launch: int
    handle: str


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    project: str
    job_id: str
    # Job.name.
    name: str
    launch: int
    # Good for WorkerService.Attach alone.
    token: str
    resources: pb.Resources


class LaunchState(Enum):
    # No worker is there, and one may come: `detail` has the reason for the wait. With an `end`,
    # the worker that was there is gone and the launch carries on without it.
    WAITING = "waiting"
    # A process or pod is there.
    PLACED = "placed"
    # It is over, whatever the exit code: no worker will come any more.
    ENDED = "ended"
    # The executor never heard of it, or cannot know any more.
    UNKNOWN = "unknown"
    # The executor cannot know yet: nothing follows from it but to ask again.
    UNSEEN = "unseen"


class LaunchEnd(Enum):
    """Why a worker or its launch ended, as far as the executor can tell."""

    EXITED = "exited"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    # Over resources.scratch_bytes.
    OUT_OF_DISK = "out_of_disk"
    # Taken away by the machine or the cluster; the job is not at fault.
    DISRUPTED = "disrupted"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    SUSPENDED = "suspended"
    DELETED = "deleted"
    NODE_LOST = "node_lost"
    STOPPED = "stopped"
    # The server heard nothing of the worker for too long; no executor says it.
    SILENT = "silent"
    START_FAILED = "start_failed"
    # The image cannot be pulled, or its name is none.
    IMAGE_FAILED = "image_failed"
    # The platform cannot make a container of what the operator configured.
    CONFIG_INVALID = "config_invalid"
    # Stopped by the platform's own deadline, the backstop of resources.run_timeout.
    OVERDUE = "overdue"


DISRUPTIONS = frozenset(
    {
        LaunchEnd.DISRUPTED,
        LaunchEnd.EVICTED,
        LaunchEnd.PREEMPTED,
        LaunchEnd.SUSPENDED,
        LaunchEnd.DELETED,
        LaunchEnd.NODE_LOST,
    }
)


@dataclass(frozen=True, slots=True)
class LaunchStatus:
    state: LaunchState
    end: LaunchEnd | None = None
    # For a person; metadata for programs (limits and figures in bytes, exit code, signal).
    detail: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    # PLACED: the worker that is there. With an `end`: the one that is gone, where that is known.
    instance_id: str = ""
    # Last lines that the worker that is gone wrote, for the operator, where its executor does not
    # keep them itself.
    log: str = ""


# Called for every change of a launch. May be called more than once with the same status.
LaunchListener = Callable[[LaunchRef, LaunchStatus], Awaitable[None]]


class Executor(Protocol):
    """Starts workers. Names derive from (job id, launch); "already there" is success."""

    async def open(self, listener: LaunchListener) -> None: ...

    async def adopt(self, launches: Sequence[LaunchRef]) -> None:
        """Take over what an earlier server process started; report what ended meanwhile."""
        ...

    def admit(self, resources: pb.Resources) -> str | None:
        """Return None when a launch can start now, else the reason it must wait, for a person.

        Raises:
            ResourceExhausted: it can never start here (more GPUs or memory than there is).
        """
        ...

    @property
    def gpu_profiles(self) -> Sequence[pb.GpuProfile]:
        """What Resources.gpu_profile may name."""
        ...

    @property
    def launches_at_once(self) -> int:
        """Launches that may be under way; with more than 1, ``admit`` does not count them."""
        ...

    async def launch(self, request: LaunchRequest) -> str:
        """Start a worker and return a handle that outlives this process.

        Raises:
            LaunchDelayed: not now; asked again with the same request after a pause.
            Unavailable: it failed; counts as a crash, and the next launch is tried.
            LightenError: it can never start; fails the job.
        """
        ...

    async def holds(self, ref: LaunchRef, instance_id: str) -> bool:
        """Whether this worker instance belongs to this launch."""
        ...

    async def status(self, ref: LaunchRef) -> LaunchStatus: ...

    async def stop(self, ref: LaunchRef, *, grace_seconds: float) -> None:
        """Ask the worker to end, kill it after the grace period. Returns at once, idempotent."""
        ...

    async def close(self) -> None:
        """Stop watching. Running workers carry on."""
        ...
