"""What workers may do to their job, and what becomes of it when they are gone."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from lighten import v1 as pb
from lighten_service.jobs import attempts, manifest, retries
from lighten_service.jobs.attempts import AttemptFenced
from lighten_service.jobs.errors import (
    FailedPrecondition,
    InvalidArgument,
    LightenError,
    NotFound,
    PermissionDenied,
)
from lighten_service.jobs.launch_errors import launch_error
from lighten_service.jobs.manifest import InvalidManifest
from lighten_service.jobs.metrics import JobMetrics
from lighten_service.jobs.names import JobName, attempt_uri
from lighten_service.jobs.ports import (
    Clock,
    Executor,
    JobStore,
    LaunchEnd,
    LaunchRef,
    LaunchState,
    LaunchStatus,
    ObjectStore,
)
from lighten_service.jobs.record import Change, JobRecord
from lighten_service.jobs.settlement import Settlement, succeed
from lighten_service.jobs.tokens import LaunchClaims, SessionClaims, TokenSigner
from lighten_service.jobs.transitions import timestamp

_log = logging.getLogger(__name__)

PROTOCOL = 1
MAX_INSTANCE_ID = 256
_DISRUPTED = LaunchStatus(LaunchState.WAITING, LaunchEnd.DISRUPTED, "the worker was asked to end")


@dataclass(frozen=True, slots=True)
class LifecycleOptions:
    """Times in seconds."""

    # A worker silent for so long is looked after; one whose process lives is waited for until
    # `silence_timeout` (a native call can hold the interpreter for long).
    heartbeat_timeout: float = 30.0
    silence_timeout: float = 600.0
    # From STARTING to the worker's hello, imports included.
    start_timeout: float = 300.0
    # From `cancel` on the stream to the stop of the worker, and from that to its kill.
    cancel_grace: float = 30.0
    stop_grace: float = 5.0
    # Life of a session token; it is renewed at half of it.
    session_seconds: float = 600.0
    # Between two looks at every live job for what is due.
    tick: float = 1.0
    # Between two readings of all live jobs from the store, which tells of every change anyway.
    resync: float = 300.0
    retry: retries.RetryPolicy = field(default_factory=retries.RetryPolicy)


@dataclass(frozen=True, slots=True)
class Attached:
    """The answer to a hello, and who the worker is from now on."""

    welcome: pb.Welcome
    claims: SessionClaims


class Lifecycle:
    """Safe to call from many tasks. Everything that matters is in the store; what is kept here
    (last heartbeats, open streams, inventories) is rebuilt by the next heartbeat or hello.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        objects: ObjectStore,
        executor: Executor,
        signer: TokenSigner,
        clock: Clock,
        metrics: JobMetrics,
        root_uri: str,
        options: LifecycleOptions | None = None,
    ) -> None:
        self.options = options or LifecycleOptions()
        self.signer = signer
        self.clock = clock
        self._store = store
        self._objects = objects
        self._executor = executor
        self._metrics = metrics
        self._root = root_uri
        self._started_at = clock.now()
        self._heard: dict[str, float] = {}
        self._streams: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        # Nodes of one cluster may have unlike CPUs.
        self._inventories: dict[tuple[str, bool], pb.WorkerInventory] = {}
        self._settlement = Settlement(
            store=store,
            objects=objects,
            executor=executor,
            clock=clock,
            metrics=metrics,
            root_uri=root_uri,
            policy=self.options.retry,
            stop_grace=self.options.stop_grace,
        )

    # --- what a worker says ---------------------------------------------------------------------

    async def attach(self, hello: pb.Hello, claims: LaunchClaims) -> Attached:
        """Join a worker with its job.

        Raises:
            AttemptFenced: another attempt has the job, or the launch is over.
            PermissionDenied: WRONG_JOB, the token is another launch's.
            FailedPrecondition: UNSUPPORTED_PROTOCOL, a fault of this attempt.
            InvalidArgument: INVALID_INSTANCE_ID.
            NotFound: the job is gone.
        """
        if not 0 < len(hello.instance_id) <= MAX_INSTANCE_ID:
            raise InvalidArgument(
                "INVALID_INSTANCE_ID",
                f"an instance id has 1 to {MAX_INSTANCE_ID} characters",
                field="instance_id",
            )
        record = await self._store.find(claims.job_id)
        if record is None:
            raise NotFound("JOB_NOT_FOUND", f"there is no job {hello.job}")
        if (hello.job, hello.launch) != (record.job.name, claims.launch):
            raise PermissionDenied("WRONG_JOB", "the launch token belongs to another launch")
        if attempts.is_current(record, hello.launch, hello.instance_id):
            self._note_second_stream(record)
        # What an update returns has no inputs; they are what they were.
        record = replace(await self._join(record, hello), inputs=record.inputs)
        if hello.protocol != PROTOCOL:
            error = _unsupported(hello)
            await self.fail(self._welcome(record).claims, error.to_job_error())
            raise error
        self._heard[record.job_id] = self.clock.now()
        kind = hello.build, hello.inventory.int8_saturates
        self._inventories[kind] = hello.inventory
        return self._welcome(record)

    def _note_second_stream(self, record: JobRecord) -> None:
        """A lost connection looks the same as a stolen token; events are stored once either way."""
        if self._streams.get(record.job_id):
            _log.warning("the worker of %s attached again while it is attached", record.job.name)
            self._metrics.worker_refused("ATTACHED_TWICE")

    async def _join(self, record: JobRecord, hello: pb.Hello) -> JobRecord:
        launch, instance = hello.launch, hello.instance_id
        if attempts.is_current(record, launch, instance):
            return record
        known = await self._executor.holds(self._ref(record, launch), instance)
        now = self.clock.now()
        return await self._store.update(
            record.job_id, lambda row: attempts.join(row, launch, instance, known=known, now=now)
        )

    async def append(self, claims: SessionClaims, events: Sequence[pb.WorkerEvent]) -> int:
        """Store events in their order, each once; return the counter up to which all are stored.

        Raises:
            AttemptFenced: the worker does not have the job any more.
            InvalidArgument: EVENT_GAP, EVENT_TOO_LARGE, EVENT_NOT_ALLOWED.
        """
        self._heard[claims.job_id] = self.clock.now()
        record = await self._store.update(
            claims.job_id, lambda row: attempts.append(row, claims, events)
        )
        return attempts.require_current(record, claims).acked_event

    async def finish_step(self, claims: SessionClaims, result: pb.StepResultRef) -> None:
        """Store the newest step result, for the attempt after this one.

        Raises:
            AttemptFenced: the worker does not have the job any more.
            InvalidArgument: INVALID_STEP_RESULT or INVALID_PATH.
        """
        self._heard[claims.job_id] = self.clock.now()
        await self._store.update(
            claims.job_id, lambda row: attempts.finish_step(row, claims, result)
        )

    async def heartbeat(self, claims: SessionClaims, heartbeat: pb.Heartbeat) -> None:
        """Keep a sign of life. Raises AttemptFenced."""
        now = self.clock.now()
        self._heard[claims.job_id] = now
        self._metrics.worker_heartbeat(claims.job_id, heartbeat)
        store_after = self.options.heartbeat_timeout / 3

        def keep(row: JobRecord) -> Change | None:
            attempts.require_current(row, claims)
            # Other replicas read it from the row; a write for every beat would tell them no more.
            stale = row.last_heartbeat is None or now - row.last_heartbeat >= store_after
            return Change(replace(row, last_heartbeat=now)) if stale else None

        await self._store.update(claims.job_id, keep)

    async def finish(self, claims: SessionClaims, manifest_sha256: str) -> None:
        """Verify what the attempt left, and store its result.

        A job that is being cancelled stays so. A manifest that does not hold is a fault of the
        attempt, which may be tried again.

        Raises:
            AttemptFenced: the worker does not have the job any more.
            Unavailable: storage is out of reach; say it again.
        """
        record = await self.current(claims)
        name = JobName(record.project, record.job_id)
        try:
            result = await manifest.read_result(
                self._objects, self._root, name, claims.attempt, manifest_sha256
            )
        except InvalidManifest as error:
            await self.fail(claims, error.to_job_error())
            return
        now = self.clock.now()
        record = await self._store.update(
            claims.job_id,
            lambda row: _unless_cancelling(row, claims, lambda: succeed(row, result, now)),
        )
        await self._stop_worker(record, claims)

    async def fail(self, claims: SessionClaims, error: pb.JobError) -> None:
        """Store that the attempt failed: try again, or fail the job. Raises AttemptFenced."""
        now, policy = self.clock.now(), self.options.retry
        record = await self._store.update(
            claims.job_id,
            lambda row: _unless_cancelling(
                row, claims, lambda: retries.report_failure(row, error, now=now, policy=policy)
            ),
        )
        self._metrics.worker_lost(error.reason.lower())
        await self._stop_worker(record, claims)

    async def stopped(self, claims: SessionClaims, why: pb.Stopped.Why.ValueType) -> None:
        """Store that the worker stopped before its end. Raises AttemptFenced."""
        now, policy = self.clock.now(), self.options.retry
        error = launch_error(_DISRUPTED).to_job_error()
        record = await self.current(claims)
        if why == pb.Stopped.WHY_DISRUPTED:
            record = await self._store.update(
                claims.job_id,
                lambda row: _unless_cancelling(
                    row,
                    claims,
                    lambda: retries.lose(row, error, now=now, policy=policy, disrupted=True),
                ),
            )
        if record.job.state != pb.JOB_STATE_QUEUED:
            await self._stop_worker(record, claims)
        # Else it ends by itself, and another one may follow it under the same launch.

    async def current(self, claims: SessionClaims) -> JobRecord:
        """Return the job of a worker that is its current attempt.

        Raises:
            AttemptFenced: it is not.
            NotFound: the job is gone.
        """
        record = await self._store.find(claims.job_id)
        if record is None:
            raise NotFound("JOB_NOT_FOUND", "the job was deleted")
        attempts.require_current(record, claims)
        return record

    # --- what the executor says -----------------------------------------------------------------

    async def settle(self, ref: LaunchRef, status: LaunchStatus) -> None:
        """See ``Settlement.settle``."""
        await self._settlement.settle(ref, status)

    # --- signs of life and open streams ---------------------------------------------------------

    def silence(self, record: JobRecord) -> float:
        """Seconds since the worker of a job was heard of, at most since this server started."""
        heard = self._heard.get(record.job_id, self._started_at)
        return self.clock.now() - max(heard, record.last_heartbeat or 0.0)

    def forget(self, job_id: str) -> None:
        """A job is finished or deleted."""
        self._heard.pop(job_id, None)

    @contextmanager
    def stream(self, job_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the state of the job may have changed."""
        changed = asyncio.Event()
        self._streams[job_id].add(changed)
        try:
            yield changed
        finally:
            self._streams[job_id].discard(changed)
            if not self._streams[job_id]:
                del self._streams[job_id]
                self._metrics.worker_detached(job_id)

    def notify(self, job_id: str) -> None:
        """The state of a job may have changed: its streams look again."""
        for changed in self._streams.get(job_id, ()):
            changed.set()

    @property
    def inventories(self) -> tuple[pb.WorkerInventory, ...]:
        """What workers reported of themselves since this server started: one for each build, and
        for CPUs that saturate and those that do not."""
        return tuple(self._inventories.values())

    def session_token(self, claims: SessionClaims) -> pb.SessionToken:
        """Return a fresh token for a worker that has proven its claims."""
        expires = self.clock.now() + self.options.session_seconds
        token = self.signer.session(replace(claims, expires=expires))
        return pb.SessionToken(token=token, expire_time=timestamp(expires))

    def _welcome(self, record: JobRecord) -> Attached:
        attempt = record.attempt
        if attempt is None:
            raise AttemptFenced(0)
        claims = SessionClaims(
            record.job_id, attempt.number, attempt.launch, attempt.instance_id, expires=0.0
        )
        welcome = pb.Welcome(
            attempt=attempt.number,
            resolved_spec=record.job.resolved_spec,
            inputs=record.inputs,
            acked_event=attempt.acked_event,
            session_token=self.session_token(claims),
            cancel_requested=record.job.state == pb.JOB_STATE_CANCELLING,
            attempt_uri=attempt_uri(
                self._root, JobName(record.project, record.job_id), attempt.number
            ),
            resume_from=record.step_result,
        )
        return Attached(welcome, claims)

    async def _stop_worker(self, record: JobRecord, claims: SessionClaims) -> None:
        """The worker has said its last word: see that it ends."""
        try:
            await self._executor.stop(
                self._ref(record, claims.launch), grace_seconds=self.options.stop_grace
            )
        except LightenError as error:
            # The reconciler stops spent launches again.
            _log.warning("cannot stop the worker of %s: %s", record.job.name, error.message)

    def _ref(self, record: JobRecord, launch: int) -> LaunchRef:
        newest = record.launch
        handle = newest.handle if newest is not None and newest.number == launch else ""
        return LaunchRef(record.job_id, launch, handle)


def _unsupported(hello: pb.Hello) -> LightenError:
    """A worker of another release is a fault of the operator; the next one may be of this one."""
    return FailedPrecondition(
        "UNSUPPORTED_PROTOCOL",
        f"the worker ({hello.build}) speaks protocol {hello.protocol} and this server {PROTOCOL}; "
        "run workers and server of the same release",
        kind=pb.ERROR_KIND_SYSTEM,
        retryable=True,
    )


def _unless_cancelling(
    row: JobRecord, claims: SessionClaims, change: Callable[[], Change]
) -> Change | None:
    """After CANCELLING only CANCELLED follows, once the worker has ended."""
    attempts.require_current(row, claims)
    return None if row.job.state == pb.JOB_STATE_CANCELLING else change()
