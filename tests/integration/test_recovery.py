"""A server that is killed with -9 and started again: jobs, workers and watchers carry on."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from lighten import v1 as pb
from lighten.v1.optimization_service_pb2_grpc import OptimizationServiceStub
from tests.support.specs import onnx_spec

REPOSITORY = Path(__file__).parents[2]


class KillableServer:
    """A server process that can be killed and started again on the same data and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.scripted_server", str(self.folder)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
            )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 30)
        assert line, (self.folder / "server.log").read_text()[-3000:]
        self.channel = grpc.aio.insecure_channel(json.loads(line)["grpc"])
        self.api: Any = OptimizationServiceStub(self.channel)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()
        await self.channel.close()

    async def create(self, script: str) -> str:
        spec = onnx_spec((self.folder / "files").as_uri())
        spec.display_name = script
        request = pb.CreateJobRequest(parent="projects/default", spec=spec)
        return (await self.api.CreateJob(request)).job.name

    async def watch(self, name: str, events: list[pb.JobEvent], *, count: int = 0) -> None:
        """Append events after those that are known; to the end, or until there are ``count``."""
        after = events[-1].sequence if events else 0
        request = pb.WatchJobRequest(name=name, after_sequence=after)
        async for response in self.api.WatchJob(request):
            if response.HasField("event"):
                events.append(response.event)
            if count and len(events) >= count:
                return

    async def job(self, name: str) -> pb.Job:
        return (await self.api.GetJob(pb.GetJobRequest(name=name))).job


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KillableServer]:
    server = KillableServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


async def gone(pid: int) -> None:
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.02)


def check(events: list[pb.JobEvent], attempt: int) -> None:
    """The watcher missed nothing, and the worker's lines are there once each, in order."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    lines = [event for event in events if event.HasField("log") and event.attempt == attempt]
    said = [event.log.message for event in lines]
    assert said == [f"line {number}" for number in range(1, len(said) + 1)]
    assert said


async def test_job_outlives_its_server(server: KillableServer, tmp_path: Path) -> None:
    go = tmp_path / "go"
    name = await server.create(f"until={go} events=5")
    events: list[pb.JobEvent] = []
    await server.watch(name, events, count=20)
    await server.kill()
    await asyncio.sleep(0.3)  # the worker goes on talking to nobody
    await server.start()
    await server.watch(name, events, count=60)
    go.touch()
    await server.watch(name, events)
    job = await server.job(name)
    assert (job.state, job.attempt, job.crashes) == (pb.JOB_STATE_SUCCEEDED, 1, 0)
    check(events, 1)


async def test_job_that_finished_while_the_server_was_away(
    server: KillableServer, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    name = await server.create(f"pid={pid} events=3 sleep=0.5")
    events: list[pb.JobEvent] = []
    await server.watch(name, events, count=6)
    await server.kill()
    await asyncio.sleep(1.0)
    await server.start()
    await server.watch(name, events)
    job = await server.job(name)
    assert (job.state, job.attempt) == (pb.JOB_STATE_SUCCEEDED, 1)
    check(events, 1)


async def test_worker_that_died_while_the_server_was_away(
    server: KillableServer, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    name = await server.create(f"pid={pid} events=3 sleep=60@1")
    events: list[pb.JobEvent] = []
    await server.watch(name, events, count=6)
    await server.kill()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    await server.start()
    await server.watch(name, events)
    job = await server.job(name)
    assert (job.state, job.attempt, job.crashes) == (pb.JOB_STATE_SUCCEEDED, 2, 1)
    check(events, 2)


async def test_cancel_goes_on_after_a_restart(server: KillableServer, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    name = await server.create(f"pid={pid} events=1 deaf=60")
    events: list[pb.JobEvent] = []
    await server.watch(name, events, count=4)
    await server.api.CancelJob(pb.CancelJobRequest(name=name))
    await server.kill()
    await server.start()
    await server.watch(name, events)
    assert (await server.job(name)).state == pb.JOB_STATE_CANCELLED
    await asyncio.wait_for(gone(int(pid.read_text())), 1)


async def test_idle_workers_end_with_their_server(server: KillableServer) -> None:
    assert server.process is not None
    children: list[psutil.Process] = []
    while not children:
        await asyncio.sleep(0.05)
        children = psutil.Process(server.process.pid).children()
    await server.kill()
    await asyncio.wait_for(gone(children[0].pid), 10)
    await server.start()
