"""Pods that are taken away, replaced, or never come: a real server, its pods as a test says."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from lighten import v1 as pb
from lighten_service.jobs.errors import FailedPrecondition, LaunchDelayed
from lighten_service.jobs.ports import LaunchEnd, LaunchRequest, LaunchState, LaunchStatus
from tests.support.edge import Edge, leave_result, refused, running_edge
from tests.support.scripted_pods import ScriptedPods
from tests.support.scripted_workers import ScriptedWorker

SECONDS = 10.0


class Cluster:
    """A server whose pods a test moves, and one job."""

    def __init__(self, edge: Edge, pods: ScriptedPods) -> None:
        self.edge = edge
        self.pods = pods

    async def create(self, **resources: Any) -> pb.Job:
        spec = self.edge.spec()
        spec.resources.MergeFrom(pb.Resources(**resources))
        return await self.edge.create(spec=spec)

    async def launched(self) -> LaunchRequest:
        return await asyncio.wait_for(self.pods.launches.get(), SECONDS)

    async def job(self, name: str) -> pb.Job:
        job: pb.Job = (await self.edge.api.GetJob(pb.GetJobRequest(name=name))).job
        return job

    async def until(self, name: str, true: Callable[[pb.Job], bool]) -> pb.Job:
        async with asyncio.timeout(SECONDS):
            while not true(job := await self.job(name)):
                await asyncio.sleep(0.02)
        return job

    async def reaches(self, name: str, state: pb.JobState.ValueType) -> pb.Job:
        return await self.until(name, lambda job: job.state == state)

    async def attached(self, launch: LaunchRequest, pod: str) -> tuple[ScriptedWorker, pb.Welcome]:
        """The worker of a pod that is placed, attached."""
        await self.pods.place(launch, pod)
        worker = ScriptedWorker(self.edge.channel, launch, pod)
        welcome = await asyncio.wait_for(worker.attach(), SECONDS)
        return worker, welcome

    async def running(self, **resources: Any) -> tuple[LaunchRequest, ScriptedWorker, pb.Welcome]:
        await self.create(**resources)
        launch = await self.launched()
        worker, welcome = await self.attached(launch, "one")
        return launch, worker, welcome

    async def errors(self, name: str) -> list[str]:
        """The reasons of all errors that the events of a job tell of so far."""
        reasons = []
        call = self.edge.api.WatchJob(pb.WatchJobRequest(name=name))
        last = (await call.read()).snapshot.last_sequence
        for _ in range(last):
            event = (await call.read()).event
            if event.state_changed.HasField("error"):
                reasons.append(event.state_changed.error.reason)
        call.cancel()
        return reasons


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    pods = ScriptedPods()
    async with running_edge(
        tmp_path, executor=pods, retry_pause_seconds=0.05, cancel_grace_seconds=0.5
    ) as edge:
        yield Cluster(edge, pods)


def figures(job: pb.Job) -> tuple[int, int, int]:
    return job.attempt, job.crashes, job.disruptions


async def test_evicted_pod_is_followed_by_another_attempt(cluster: Cluster) -> None:
    launch, worker, _ = await cluster.running()
    await worker.stop()
    job = await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
    assert job.state_reason.startswith("the worker was asked to end")
    await cluster.pods.evict(launch, "one")
    job = await cluster.until(
        launch.name, lambda job: job.state_reason.startswith("the node ran out of disk")
    )
    assert figures(job) == (1, 0, 1)
    assert await cluster.errors(launch.name) == ["WORKER_DISRUPTED", "WORKER_EVICTED"]
    await cluster.pods.place(launch, "two")
    await cluster.reaches(launch.name, pb.JOB_STATE_STARTING)
    second, welcome = await cluster.attached(launch, "two")
    assert welcome.attempt == 2
    await second.finish(leave_result(launch.name, welcome))
    job = await cluster.reaches(launch.name, pb.JOB_STATE_SUCCEEDED)
    assert figures(job) == (2, 0, 1)
    assert len(cluster.pods.tried) == 1


async def test_worker_that_speaks_after_its_executor_is_fenced(cluster: Cluster) -> None:
    launch, worker, _ = await cluster.running()
    await cluster.pods.evict(launch, "one", LaunchEnd.PREEMPTED)
    await asyncio.wait_for(worker.until_fenced(), SECONDS)
    again = ScriptedWorker(cluster.edge.channel, launch, "one")
    await again.attach()
    assert again.is_fenced
    job = await cluster.job(launch.name)
    assert (job.state, figures(job)) == (pb.JOB_STATE_QUEUED, (1, 0, 1))
    assert await cluster.errors(launch.name) == ["WORKER_PREEMPTED"]


async def test_late_word_of_the_old_pod_changes_nothing(cluster: Cluster) -> None:
    launch, _, _ = await cluster.running()
    await cluster.pods.evict(launch, "one")
    await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
    worker, _ = await cluster.attached(launch, "two")
    before = await cluster.job(launch.name)
    await cluster.pods.evict(launch, "one")
    await cluster.pods.place(launch, "two")
    worker.tell(log=pb.LogLine(level=pb.LOG_LEVEL_INFO, message="still here"))
    await asyncio.wait_for(worker.settle(), SECONDS)
    after = await cluster.job(launch.name)
    assert (after.state, figures(after)) == (pb.JOB_STATE_RUNNING, figures(before))


async def test_deleted_pod_ends_the_launch_and_the_next_one_is_made(cluster: Cluster) -> None:
    launch, _, _ = await cluster.running()
    await cluster.pods.evict(launch, "one")
    await cluster.pods.end(launch, LaunchEnd.DELETED, "one")
    second = await cluster.launched()
    assert (second.launch, second.job_id) == (2, launch.job_id)
    _, welcome = await cluster.attached(second, "two")
    assert welcome.attempt == 2
    assert figures(await cluster.job(launch.name)) == (2, 0, 1)
    late = ScriptedWorker(cluster.edge.channel, launch, "three")
    await late.attach()
    assert late.is_fenced


async def test_lost_node_does_not_hold_the_job(cluster: Cluster) -> None:
    launch, worker, _ = await cluster.running(max_retries=0)
    await cluster.pods.end(launch, LaunchEnd.NODE_LOST, "one")
    assert (await cluster.launched()).launch == 2
    await asyncio.wait_for(worker.until_fenced(), SECONDS)
    job = await cluster.job(launch.name)
    assert figures(job) == (1, 0, 1)
    assert await cluster.errors(launch.name) == ["NODE_LOST"]


async def test_result_that_was_whole_before_the_eviction_counts(cluster: Cluster) -> None:
    launch, _, welcome = await cluster.running()
    leave_result(launch.name, welcome)
    await cluster.pods.evict(launch, "one")
    job = await cluster.reaches(launch.name, pb.JOB_STATE_SUCCEEDED)
    assert figures(job) == (1, 0, 0)
    # No other pod is needed.
    assert [ref.launch for ref in cluster.pods.stopped] == [1]


async def test_job_cancelled_while_its_pod_is_evicted(cluster: Cluster) -> None:
    launch, _, _ = await cluster.running()
    await cluster.edge.api.CancelJob(pb.CancelJobRequest(name=launch.name))
    await cluster.pods.evict(launch, "one")
    job = await cluster.reaches(launch.name, pb.JOB_STATE_CANCELLED)
    assert figures(job) == (1, 0, 0)
    assert cluster.pods.stopped


async def test_job_cancelled_while_it_waits_for_its_next_pod(cluster: Cluster) -> None:
    launch, _, _ = await cluster.running()
    await cluster.pods.evict(launch, "one")
    await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
    await cluster.edge.api.CancelJob(pb.CancelJobRequest(name=launch.name))
    late = ScriptedWorker(cluster.edge.channel, launch, "two")
    await late.attach()
    assert late.is_fenced
    assert await cluster.reaches(launch.name, pb.JOB_STATE_CANCELLED)


async def test_worker_stops_for_a_cancel_and_an_eviction_at_once(cluster: Cluster) -> None:
    launch, worker, _ = await cluster.running()
    await cluster.edge.api.CancelJob(pb.CancelJobRequest(name=launch.name))
    await worker.stop(pb.Stopped.WHY_DISRUPTED)
    assert await cluster.reaches(launch.name, pb.JOB_STATE_CANCELLED)
    assert cluster.pods.stopped


async def test_scheduler_s_reason_is_the_job_s(cluster: Cluster) -> None:
    name = (await cluster.create()).name
    launch = await cluster.launched()
    await cluster.until(name, lambda job: job.state_reason == "1 Insufficient nvidia.com/gpu")
    waiting = LaunchStatus(LaunchState.WAITING, detail="no nodes at all")
    await cluster.pods.tell(launch, waiting)
    job = await cluster.until(name, lambda job: job.state_reason == "no nodes at all")
    assert job.state == pb.JOB_STATE_QUEUED


async def test_launch_that_is_put_off_is_tried_again(cluster: Cluster) -> None:
    full = "the quota of the namespace is used up: 1 of 1 GPUs"
    cluster.pods.refusals = [LaunchDelayed("QUOTA_EXCEEDED", full)]
    name = (await cluster.create()).name
    job = await cluster.until(name, lambda job: job.state_reason == full)
    assert job.state == pb.JOB_STATE_QUEUED
    launch = await cluster.launched()
    assert [request.launch for request in cluster.pods.tried] == [1, 1]
    assert launch.token == cluster.pods.tried[0].token
    assert figures(await cluster.job(name)) == (0, 0, 0)


async def test_jobs_alike_wait_for_the_one_that_is_put_off(cluster: Cluster) -> None:
    error = LaunchDelayed("KUBERNETES_UNAVAILABLE", "the API server is away")
    cluster.pods.refusals = [error] * 9
    jobs = [await cluster.create() for _ in range(30)]
    await asyncio.sleep(0.5)
    # Those that were on their way, and no more until the pause is over.
    assert len(cluster.pods.tried) <= cluster.pods.launches_at_once
    last = await cluster.until(jobs[-1].name, lambda job: job.state_reason == error.message)
    assert last.state == pb.JOB_STATE_QUEUED
    # Jobs that ask for something else do not wait with them.
    other = await cluster.create(memory_bytes=1 << 30)
    cluster.pods.refusals = []
    launched = {(await cluster.launched()).name for _ in range(31)}
    assert launched == {job.name for job in (*jobs, other)}


async def test_queue_timeout_names_the_last_reason(cluster: Cluster) -> None:
    error = LaunchDelayed("QUOTA_EXCEEDED", "the quota of the namespace is used up")
    cluster.pods.refusals = [error] * 100
    resources = pb.Resources()
    resources.queue_timeout.FromSeconds(1)
    name = (await cluster.create(queue_timeout=resources.queue_timeout)).name
    job = await cluster.reaches(name, pb.JOB_STATE_FAILED)
    assert (job.error.reason, job.error.kind) == ("QUEUE_TIMEOUT", pb.ERROR_KIND_RESOURCE)
    assert job.error.field == "resources.queue_timeout"
    assert error.message in job.error.message
    assert job.error.metadata["waited_for"] == error.message


async def test_launch_that_is_refused_for_good_fails_the_job(cluster: Cluster) -> None:
    cluster.pods.refusals = [
        FailedPrecondition(
            "ADMISSION_REFUSED", "the cluster refuses the worker", kind=pb.ERROR_KIND_SYSTEM
        )
    ]
    name = (await cluster.create()).name
    job = await cluster.reaches(name, pb.JOB_STATE_FAILED)
    assert (job.error.reason, job.error.kind) == ("ADMISSION_REFUSED", pb.ERROR_KIND_SYSTEM)
    assert not job.error.retryable
    assert len(cluster.pods.tried) == 1
    await cluster.edge.api.DeleteJob(pb.DeleteJobRequest(name=name))


async def test_restarted_server_finds_the_pod_replaced(tmp_path: Path) -> None:
    pods = ScriptedPods()
    async with running_edge(tmp_path, executor=pods) as edge:
        launch, _, _ = await Cluster(edge, pods).running()
    # While it was away the pod went, and nobody can say any more why.
    await pods.tell(launch, LaunchStatus(LaunchState.WAITING, detail="no node is free"))
    async with running_edge(tmp_path, executor=pods, heartbeat_timeout_seconds=0.2) as edge:
        cluster = Cluster(edge, pods)
        job = await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
        assert figures(job) == (1, 0, 1)
        await cluster.until(launch.name, lambda job: job.state_reason == "no node is free")
        _, welcome = await cluster.attached(launch, "two")
        assert welcome.attempt == 2
    assert len(pods.tried) == 1


async def test_restarted_server_that_cannot_see_its_pods_keeps_its_workers(tmp_path: Path) -> None:
    pods = ScriptedPods()
    async with running_edge(tmp_path, executor=pods) as edge:
        launch, _, _ = await Cluster(edge, pods).running()
    await pods.tell(launch, LaunchStatus(LaunchState.UNSEEN, detail="the API is out of reach"))
    async with running_edge(tmp_path, executor=pods, heartbeat_timeout_seconds=0.1) as edge:
        cluster = Cluster(edge, pods)
        await asyncio.sleep(3.0)
        job = await cluster.job(launch.name)
        assert (job.state, figures(job)) == (pb.JOB_STATE_RUNNING, (1, 0, 0))
        # The worker was busy for long, and speaks again.
        worker = ScriptedWorker(edge.channel, launch, "one")
        welcome = await asyncio.wait_for(worker.attach(), SECONDS)
        await worker.finish(leave_result(launch.name, welcome))
        await cluster.reaches(launch.name, pb.JOB_STATE_SUCCEEDED)


@pytest.mark.parametrize("keep", [False, True])
async def test_last_lines_of_workers_are_kept_for_the_operator(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, keep: bool
) -> None:
    launch, _, _ = await cluster.running(max_retries=0)
    with caplog.at_level(logging.INFO):
        await cluster.pods.evict(launch, "one", log="first\nworker\n")
        await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
        await cluster.attached(launch, "two")
        await cluster.pods.end(launch, LaunchEnd.CRASHED, "two", log="Traceback\n")
        await cluster.reaches(launch.name, pb.JOB_STATE_FAILED)
    (folder,) = tmp_path.rglob("logs")
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "launch-1-one.log": "first\nworker\n",
        "launch-1-two.log": "Traceback\n",
    }
    kept = [record for record in caplog.records if hasattr(record, "uri")]
    assert [record.__dict__["uri"] for record in kept] == [
        (folder / name).as_uri() for name in ("launch-1-one.log", "launch-1-two.log")
    ]
    # Callers read what the error says, and get no URL of the log.
    job = await cluster.job(launch.name)
    assert "Traceback" not in job.error.message
    url = pb.CreateDownloadUrlRequest(job=launch.name, artifact="logs/launch-1-two.log")
    assert (await refused(cluster.edge.api.CreateDownloadUrl(url))).reason == "NO_RESULT"
    await cluster.edge.api.DeleteJob(pb.DeleteJobRequest(name=launch.name, keep_artifacts=keep))
    assert not list(folder.glob("*"))


async def test_workers_that_are_not_heard_are_counted_and_logged(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    launch, _, _ = await cluster.running()
    twice = ScriptedWorker(cluster.edge.channel, launch, "one")
    assert (await twice.attach()).attempt == 1
    assert "attached again while it is attached" in caplog.text
    await cluster.pods.evict(launch, "one")
    await cluster.reaches(launch.name, pb.JOB_STATE_QUEUED)
    late = ScriptedWorker(cluster.edge.channel, launch, "one")
    await late.attach()
    assert late.is_fenced
    url = cluster.edge.plane.addresses.metrics + "/metrics"
    text = await asyncio.to_thread(lambda: urlopen(url, timeout=10).read().decode())
    for reason in ("ATTACHED_TWICE", "ATTEMPT_FENCED"):
        assert f'lighten_workers_refused_total{{reason="{reason}"}}' in text
