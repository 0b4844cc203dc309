"""Jobs on real workers: real server, store, storage and processes; only the work is a script."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from lighten_service.assembly import open_control_plane
from lighten_service.executors.local.cgroups import find_parent
from tests.support.scripted_server import executor_factory, settings_for
from tests.support.specs import onnx_spec

MIB = 1 << 20


class Bench:
    """A server with scripted workers and a client."""

    def __init__(self, api: Any, folder: Path) -> None:
        self.api = api
        self.folder = folder

    async def create(self, script: str, **resources: Any) -> str:
        spec = onnx_spec((self.folder / "files").as_uri())
        spec.display_name = script
        spec.resources.MergeFrom(pb.Resources(**resources))
        request = pb.CreateJobRequest(parent="projects/default", spec=spec)
        return (await self.api.CreateJob(request)).job.name

    async def get(self, name: str) -> pb.Job:
        return (await self.api.GetJob(pb.GetJobRequest(name=name))).job

    async def watch(self, name: str) -> AsyncIterator[pb.JobEvent]:
        async for response in self.api.WatchJob(pb.WatchJobRequest(name=name)):
            if response.HasField("event"):
                yield response.event

    async def until(self, name: str, payload: str) -> pb.JobEvent:
        async for event in self.watch(name):
            if event.HasField(payload):
                return event
        raise AssertionError(f"no {payload}")

    async def end(self, name: str) -> tuple[pb.Job, list[pb.JobEvent]]:
        events = [event async for event in self.watch(name)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        return await self.get(name), events


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    factory = executor_factory(**getattr(request, "param", {}))
    async with (
        open_control_plane(settings_for(tmp_path), factory) as plane,
        grpc.aio.insecure_channel(plane.addresses.grpc) as channel,
    ):
        yield Bench(OptimizationServiceStub(channel), tmp_path)
        # Workers end a moment after their jobs.
        async with asyncio.timeout(10):
            while list(tmp_path.glob("data/workers/*/launch.json")):
                await asyncio.sleep(0.02)


def lines(events: list[pb.JobEvent], attempt: int) -> list[str]:
    return [
        event.log.message for event in events if event.HasField("log") and event.attempt == attempt
    ]


def states(events: list[pb.JobEvent]) -> list[str]:
    moved = [event.state_changed for event in events if event.HasField("state_changed")]
    return [
        pb.JobState.Name(change.to).removeprefix("JOB_STATE_")
        for change in moved
        if change.to != getattr(change, "from")
    ]


async def test_job_succeeds_with_its_artifact(bench: Bench) -> None:
    name = await bench.create("events=100")
    job, events = await bench.end(name)
    assert states(events) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert lines(events, 1) == [f"line {number}" for number in range(1, 101)]
    (artifact,) = job.result.artifacts
    assert artifact.uri.endswith("/attempts/1/artifacts/model.bin")
    assert (job.attempt, job.crashes, job.result.attempt) == (1, 0, 1)


# Part of what a worker imports early: its hello says what ONNX Runtime's kernels do.
PROBE = {"warm_imports": ["lighten_service.worker.integers.saturation"]}


@pytest.mark.parametrize("bench", [PROBE], indirect=True, ids=["warm"])
async def test_warm_worker_begins_within_the_target(bench: Bench) -> None:
    await bench.end(await bench.create("events=1"))
    await asyncio.sleep(1.0)  # the next worker gets warm
    name = await bench.create("events=1")
    began = time.monotonic()
    await bench.until(name, "stage_started")
    assert time.monotonic() - began < 0.3


async def test_killed_worker_is_replaced_and_succeeds(bench: Bench) -> None:
    job, events = await bench.end(await bench.create("events=3 kill9@1"))
    assert states(events) == [
        *("QUEUED", "STARTING", "RUNNING"),
        *("QUEUED", "STARTING", "RUNNING", "SUCCEEDED"),
    ]
    assert (job.attempt, job.crashes, job.disruptions) == (2, 1, 0)
    (lost,) = [event for event in events if event.state_changed.HasField("error")]
    assert lost.state_changed.error.reason == "WORKER_LOST"
    assert lost.state_changed.error.metadata["signal"] == "SIGKILL"
    assert lines(events, 2) == ["line 1", "line 2", "line 3"]


async def test_worker_that_is_asked_to_end_is_no_crash(bench: Bench) -> None:
    pid = bench.folder / "pid"
    name = await bench.create(f"pid={pid}@1 events=1 sleep=60@1")
    await bench.until(name, "log")
    os.kill(int(pid.read_text()), signal.SIGTERM)
    job, _ = await bench.end(name)
    assert job.state == pb.JOB_STATE_SUCCEEDED
    assert (job.attempt, job.crashes, job.disruptions) == (2, 0, 1)


async def test_crashes_beyond_max_retries_fail_the_job(bench: Bench) -> None:
    job, _ = await bench.end(await bench.create("kill9", max_retries=0))
    assert job.state == pb.JOB_STATE_FAILED
    assert (job.error.reason, job.error.kind) == ("WORKER_LOST", pb.ERROR_KIND_SYSTEM)
    assert job.error.retryable


async def test_error_of_the_user_is_not_retried(bench: Bench) -> None:
    job, _ = await bench.end(await bench.create("refuse"))
    assert job.state == pb.JOB_STATE_FAILED
    assert (job.error.reason, job.error.kind) == ("INVALID_MODEL", pb.ERROR_KIND_USER)
    assert job.error.field == "model.artifact"
    assert job.error.stage.step_id == "scripted"
    assert (job.attempt, job.crashes) == (1, 0)


async def test_unforeseen_error_keeps_its_details_in_the_log(bench: Bench) -> None:
    job, _ = await bench.end(await bench.create("oops", max_retries=0))
    assert (job.error.reason, job.error.kind) == ("INTERNAL", pb.ERROR_KIND_SYSTEM)
    assert "secret" not in job.error.message
    (log,) = bench.folder.glob("data/workers/*/worker.log")
    assert job.error.reference in log.read_text()
    assert "a secret detail" in log.read_text()


WATCHDOG_ALONE = {"use_cgroups": False}
CGROUP_ALONE = {"use_cgroups": True, "memory_interval": 60.0}
NO_CGROUPS = pytest.mark.skipif(find_parent() is None, reason="memory cgroups cannot be made here")


@pytest.mark.parametrize(
    "bench",
    [pytest.param(WATCHDOG_ALONE), pytest.param(CGROUP_ALONE, marks=NO_CGROUPS)],
    ids=["watchdog", "cgroup"],
    indirect=True,
)
async def test_out_of_memory_names_the_figures(bench: Bench) -> None:
    limit = 256 * MIB
    job, _ = await bench.end(await bench.create("eat=400", memory_bytes=limit))
    assert job.state == pb.JOB_STATE_FAILED
    assert (job.error.reason, job.error.kind) == ("OUT_OF_MEMORY", pb.ERROR_KIND_RESOURCE)
    assert int(job.error.metadata["limit_bytes"]) == limit
    assert int(job.error.metadata["used_bytes"]) >= limit
    assert "resources.memory_bytes" in job.error.message
    assert job.attempt == 1


async def test_too_much_scratch_fails_the_job(bench: Bench) -> None:
    job, _ = await bench.end(await bench.create("fill=80", scratch_bytes=64 * MIB))
    assert (job.error.reason, job.error.kind) == ("OUT_OF_DISK", pb.ERROR_KIND_RESOURCE)


async def test_cancel_stops_a_worker_that_listens(bench: Bench) -> None:
    name = await bench.create("sleep=60")
    await bench.until(name, "stage_started")
    asked = time.monotonic()
    await bench.api.CancelJob(pb.CancelJobRequest(name=name))
    _, events = await bench.end(name)
    assert states(events)[-2:] == ["CANCELLING", "CANCELLED"]
    assert time.monotonic() - asked < 1.0
    assert list(bench.folder.glob("data/workers/*/scratch")) == []


async def test_cancel_kills_a_worker_that_does_not_listen(bench: Bench) -> None:
    pid = bench.folder / "pid"
    name = await bench.create(f"pid={pid} deaf=60")
    while not pid.exists():
        await asyncio.sleep(0.02)
    await bench.api.CancelJob(pb.CancelJobRequest(name=name))
    job, _ = await bench.end(name)
    assert job.state == pb.JOB_STATE_CANCELLED
    assert not psutil.pid_exists(int(pid.read_text()))


async def test_cancel_of_a_waiting_job_needs_no_worker(bench: Bench) -> None:
    running = await bench.create("sleep=60")
    await bench.until(running, "stage_started")
    waiting = await bench.create("events=1")
    while (await bench.get(waiting)).state_reason != "waiting for a CPU slot":
        await asyncio.sleep(0.02)
    await bench.api.CancelJob(pb.CancelJobRequest(name=waiting))
    _, events = await bench.end(waiting)
    assert states(events) == ["QUEUED", "CANCELLING", "CANCELLED"]
    await bench.api.CancelJob(pb.CancelJobRequest(name=running))
    await bench.end(running)


async def test_run_timeout_ends_the_job(bench: Bench) -> None:
    name = await bench.create("sleep=60", run_timeout={"seconds": 1})
    job, _ = await bench.end(name)
    assert (job.error.reason, job.error.kind) == ("RUN_TIMEOUT", pb.ERROR_KIND_RESOURCE)
    assert job.attempt == 1


async def test_queue_timeout_ends_the_job(bench: Bench) -> None:
    running = await bench.create("sleep=60")
    await bench.until(running, "stage_started")
    job, _ = await bench.end(await bench.create("events=1", queue_timeout={"seconds": 1}))
    assert (job.error.reason, job.error.kind) == ("QUEUE_TIMEOUT", pb.ERROR_KIND_RESOURCE)
    assert job.attempt == 0
    await bench.api.CancelJob(pb.CancelJobRequest(name=running))
    await bench.end(running)


async def test_higher_priority_starts_first(bench: Bench) -> None:
    running = await bench.create("sleep=0.5")
    await bench.until(running, "stage_started")
    low = await bench.create("events=1", priority=-1)
    high = await bench.create("events=1", priority=5)
    jobs = [(await bench.end(name))[0] for name in (low, high)]
    assert jobs[1].start_time.ToNanoseconds() < jobs[0].start_time.ToNanoseconds()


async def test_worker_sees_nothing_of_the_servers_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTEN_S3__SECRET_KEY", "secret")
    found = bench.folder / "environment.json"
    await bench.end(await bench.create(f"environment={found}"))
    seen = json.loads(found.read_text())
    assert not any("LIGHTEN" in name or "AWS" in name for name in seen)
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert int(seen["OMP_NUM_THREADS"]) >= 1
