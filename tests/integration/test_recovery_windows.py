"""The moments between two steps of a server that is killed, and workers that fall silent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lighten import v1 as pb
from lighten_service.clock import SystemClock
from lighten_service.jobs.errors import Unavailable
from lighten_service.jobs.lifecycle import Lifecycle, LifecycleOptions
from lighten_service.jobs.ports import (
    JobStore,
    LaunchEnd,
    LaunchRef,
    LaunchRequest,
    LaunchState,
    LaunchStatus,
)
from lighten_service.jobs.reconcile import Reconciler
from lighten_service.jobs.record import Attempt, Change, JobRecord, Launch
from lighten_service.jobs.retries import RetryPolicy
from lighten_service.jobs.tokens import TokenSigner, make_secret
from lighten_service.jobs.transitions import request_cancel, transition
from lighten_service.objects.local import LocalObjectStore
from lighten_service.objects.signing import UrlSigner
from lighten_service.store import open_store
from lighten_service.telemetry.metrics import Metrics
from tests.support.scripted_workers import ScriptedExecutor

JOB = "0" * 26
OPTIONS = LifecycleOptions(
    heartbeat_timeout=0.2,
    silence_timeout=0.4,
    start_timeout=0.4,
    tick=0.05,
    retry=RetryPolicy(first_pause=0.05),
)


class Ground:
    """A store with one job, on which reconcilers come and go."""

    def __init__(self, store: JobStore, folder: Path) -> None:
        self.store = store
        self.executor = ScriptedExecutor(slots=1)
        clock, metrics = SystemClock(), Metrics()
        signer = UrlSigner(b"x" * 32, "http://127.0.0.1:1", "http://127.0.0.1:1", clock)
        self.reconciler = Reconciler(
            store=store,
            executor=self.executor,
            lifecycle=Lifecycle(
                store=store,
                objects=LocalObjectStore([(folder, True)], signer),
                executor=self.executor,
                signer=TokenSigner(make_secret()),
                clock=clock,
                metrics=metrics,
                root_uri=folder.as_uri(),
                options=OPTIONS,
            ),
            metrics=metrics,
        )

    async def given(self, *states: pb.JobState.ValueType, **fields: object) -> None:
        """Store a job that went through these states."""
        job = pb.Job(name=f"projects/default/jobs/{JOB}")
        job.resolved_spec.resources.max_retries = 2
        job.resolved_spec.resources.queue_timeout.FromSeconds(3600)
        now = SystemClock().now()
        change = Change(JobRecord("default", JOB, job))
        events: list[pb.JobEvent] = []
        for state in (pb.JOB_STATE_QUEUED, *states):
            change = transition(change.record, state, reason="given", now=now)
            events.extend(change.events)
        await self.store.create(replace(change.record, **fields), events)  # type: ignore[arg-type]

    async def until(self, true: Callable[[JobRecord], bool]) -> JobRecord:
        async with asyncio.timeout(5):
            while True:
                record = await self.store.get("default", JOB)
                if true(record):
                    return record
                await asyncio.sleep(0.02)

    async def launched(self) -> LaunchRequest:
        return await asyncio.wait_for(self.executor.launches.get(), 5)


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    store = await open_store(f"sqlite:///{tmp_path / 'jobs.db'}", clock=SystemClock())
    ground = Ground(store, tmp_path / "objects")
    yield ground
    await ground.reconciler.close()
    await store.close()


async def test_killed_before_the_executor_answered(ground: Ground) -> None:
    await ground.given(launch=Launch(1))
    await ground.reconciler.start()
    assert (await ground.launched()).launch == 1
    record = await ground.until(lambda record: record.job.state == pb.JOB_STATE_STARTING)
    assert record.launch == Launch(1, "scripted")
    assert record.job.crashes == 0


async def test_killed_before_the_end_of_a_launch_was_stored(ground: Ground) -> None:
    await ground.given(
        pb.JOB_STATE_STARTING,
        pb.JOB_STATE_RUNNING,
        launch=Launch(1, "other"),
        attempts=(Attempt(1, 1, "one"),),
    )
    # The executor knows nothing of the launch any more.
    ground.executor.adopt = _nothing  # type: ignore[method-assign,assignment]
    await ground.reconciler.start()
    assert (await ground.launched()).launch == 2
    record = await ground.until(lambda record: record.job.state == pb.JOB_STATE_STARTING)
    assert record.job.crashes == 1


async def test_killed_before_a_cancelled_job_was_settled(ground: Ground) -> None:
    await ground.given(pb.JOB_STATE_CANCELLING)
    await ground.reconciler.start()
    await ground.until(lambda record: record.job.state == pb.JOB_STATE_CANCELLED)


async def test_killed_before_the_spent_launch_had_ended(ground: Ground) -> None:
    await ground.given(launch=Launch(1, "scripted"), attempts=(Attempt(1, 1, "one"),))
    await ground.reconciler.start()
    assert (await ground.launched()).launch == 2


@pytest.mark.parametrize("attached", [True, False])
async def test_silent_worker_is_lost_and_stopped(ground: Ground, attached: bool) -> None:
    states = (pb.JOB_STATE_STARTING, pb.JOB_STATE_RUNNING)[: 2 if attached else 1]
    attempts = (Attempt(1, 1, "one"),) if attached else ()
    await ground.given(*states, launch=Launch(1, "scripted"), attempts=attempts)
    await ground.reconciler.start()
    assert (await ground.launched()).launch == 2
    record = await ground.store.get("default", JOB)
    assert record.job.crashes == 1
    events = await ground.store.events(JOB, 0, 100)
    (lost,) = [event for event in events if event.state_changed.HasField("error")]
    assert lost.state_changed.error.reason == "WORKER_SILENT"


async def test_silent_worker_that_stays_is_counted_once(ground: Ground) -> None:
    stopped: list[LaunchRef] = []

    async def stop(ref: LaunchRef, *, grace_seconds: float) -> None:
        stopped.append(ref)

    # Still there after the stop, as during the grace period: the launch goes on holding its slot.
    ground.executor.stop = stop  # type: ignore[method-assign]
    await ground.given(pb.JOB_STATE_STARTING, launch=Launch(1, "scripted"))
    await ground.reconciler.start()
    record = await ground.until(lambda record: record.job.state == pb.JOB_STATE_QUEUED)
    assert stopped == [LaunchRef(JOB, 1, "scripted")]
    await asyncio.sleep(3 * OPTIONS.tick)
    listener = ground.executor._listener
    assert listener is not None
    ground.executor._live.clear()
    await listener(stopped[0], LaunchStatus(LaunchState.ENDED, LaunchEnd.STOPPED))
    assert (await ground.launched()).launch == 2
    record = await ground.store.get("default", JOB)
    assert (record.job.crashes, record.job.attempt) == (1, 0)


def fail_once(ground: Ground, monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """Let the store's method fail the next time; return the numbers of its calls from now on."""
    real, calls = getattr(ground.store, method), [0]

    async def call(*arguments: object) -> object:
        calls.append(len(calls))
        if len(calls) == 2:
            raise Unavailable("STORE_UNAVAILABLE", "the database is away")
        return await real(*arguments)

    monkeypatch.setattr(ground.store, method, call)
    return calls


async def test_store_that_fails_once_holds_no_job_up(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.reconciler.start()
    await asyncio.sleep(3 * OPTIONS.tick)
    calls = fail_once(ground, monkeypatch, "update")
    await ground.given(launch=Launch(1, "scripted", ended=True))
    assert (await ground.launched()).launch == 2
    assert len(calls) > 2


async def test_store_that_fails_once_loses_no_end(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.given(pb.JOB_STATE_STARTING, launch=Launch(1, "scripted"))
    await ground.reconciler.start()
    calls = fail_once(ground, monkeypatch, "find")
    await ground.executor.stop(LaunchRef(JOB, 1, "scripted"), grace_seconds=0)
    assert (await ground.launched()).launch == 2
    assert len(calls) > 2
    assert (await ground.store.get("default", JOB)).job.crashes == 1


async def test_cancel_while_the_launch_waits(ground: Ground) -> None:
    await ground.given(pb.JOB_STATE_STARTING, launch=Launch(1, "scripted"))
    await ground.reconciler.start()
    now = SystemClock().now()
    await ground.store.update(JOB, lambda row: request_cancel(row, reason="", now=now))
    await ground.until(lambda record: record.job.state == pb.JOB_STATE_CANCELLED)


async def test_what_can_never_run_fails_with_the_reason(ground: Ground) -> None:
    await ground.given()
    await ground.store.update(JOB, _ask_for_gpus)
    await ground.reconciler.start()
    record = await ground.until(lambda record: record.job.state == pb.JOB_STATE_FAILED)
    assert record.job.error.reason == "RESOURCES_NOT_HERE"


async def test_end_told_twice_counts_once(ground: Ground) -> None:
    await ground.given(
        pb.JOB_STATE_STARTING,
        pb.JOB_STATE_RUNNING,
        launch=Launch(1, "scripted"),
        attempts=(Attempt(1, 1, "one"),),
    )
    await ground.reconciler.start()
    listener = ground.executor._listener
    assert listener is not None
    ended = LaunchStatus(LaunchState.ENDED, LaunchEnd.CRASHED, "gone")
    ground.executor._live.clear()
    for _ in range(3):
        await listener(LaunchRef(JOB, 1, "scripted"), ended)
    await ground.launched()
    assert (await ground.store.get("default", JOB)).job.crashes == 1


async def _nothing(_: object) -> None:
    return


def _ask_for_gpus(row: JobRecord) -> Change:
    job = pb.Job()
    job.CopyFrom(row.job)
    job.resolved_spec.resources.gpus = 4
    return Change(replace(row, job=job))
