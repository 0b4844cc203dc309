"""Watching jobs: every event once, in order, over breaks and restarts."""

import asyncio

import grpc
import pytest

from lighten import v1 as pb
from tests.support.edge import Edge, Refusal, refused, running_edge

PARENT = "projects/default"


@pytest.fixture
async def edge(tmp_path):
    async with running_edge(tmp_path, slots=1) as running:
        yield running


async def collect(edge: Edge, name: str, after: int = 0) -> list[pb.WatchJobResponse]:
    request = pb.WatchJobRequest(name=name, after_sequence=after)
    return [response async for response in edge.api.WatchJob(request)]


def sequences(responses: list[pb.WatchJobResponse]) -> list[int]:
    return [response.event.sequence for response in responses[1:]]


async def run_to_failure(edge: Edge, events: int) -> None:
    worker = await edge.worker()
    for number in range(events):
        worker.tell(log=pb.LogLine(level=pb.LOG_LEVEL_INFO, message=str(number)))
    await worker.settle()
    await worker.fail(pb.JobError(reason="INVALID_MODEL", kind=pb.ERROR_KIND_USER, message="no"))


async def test_every_watcher_gets_every_event_once_in_order(edge: Edge):
    job = await edge.create()
    watchers = [asyncio.create_task(collect(edge, job.name)) for _ in range(20)]
    await run_to_failure(edge, 50)
    for responses in await asyncio.gather(*watchers):
        assert responses[0].snapshot.job.name == job.name
        assert responses[0].snapshot.job.HasField("spec")
        assert responses[0].snapshot.first_retained_sequence == 1
        numbers = sequences(responses)
        assert numbers == list(range(1, len(numbers) + 1))
        logs = [item.event.log.message for item in responses if item.event.HasField("log")]
        assert logs == [str(number) for number in range(50)]
        assert responses[-1].event.state_changed.to == pb.JOB_STATE_FAILED
        assert responses[-1].event.state_changed.error.reason == "INVALID_MODEL"


async def test_a_watch_goes_on_from_any_sequence(edge: Edge):
    job = await edge.create()
    await run_to_failure(edge, 600)
    whole = await collect(edge, job.name)
    last = whole[0].snapshot.last_sequence
    assert sequences(whole) == list(range(1, last + 1))
    for after in (1, 300, last - 1, last):
        part = await collect(edge, job.name, after)
        assert sequences(part) == list(range(after + 1, last + 1))
    request = pb.WatchJobRequest(name=job.name, after_sequence=last + 1)
    refusal = await refused(edge.api.WatchJob(request))
    assert (refusal.code.name, refusal.reason) == ("OUT_OF_RANGE", "SEQUENCE_OUT_OF_RANGE")


async def test_a_watcher_that_does_not_read_holds_nobody_up(edge: Edge):
    job = await edge.create()
    slow = edge.api.WatchJob(pb.WatchJobRequest(name=job.name))
    await slow.read()
    live = asyncio.create_task(collect(edge, job.name))
    worker = await edge.worker()
    for _ in range(1000):
        worker.tell(log=pb.LogLine(level=pb.LOG_LEVEL_INFO, message="x" * 1000))
    await worker.settle()
    await worker.fail(pb.JobError(reason="X", kind=pb.ERROR_KIND_USER))
    assert len(await asyncio.wait_for(live, 10)) > 1000
    numbers = []
    while (response := await slow.read()) is not grpc.aio.EOF:
        numbers.append(response.event.sequence)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 1000


async def test_a_watch_survives_a_restart_of_the_server(tmp_path):
    async with running_edge(tmp_path, slots=1) as edge:
        job = await edge.create()
        watch = edge.api.WatchJob(pb.WatchJobRequest(name=job.name))
        await watch.read()
        worker = await edge.worker()
        for number in range(5):
            worker.tell(log=pb.LogLine(message=str(number)))
        await worker.settle()
        seen = []
        while len(seen) < 5:
            seen.append((await watch.read()).event.sequence)
        reading = asyncio.create_task(drain_watch(watch, seen))
        await edge.plane.drain()
        refusal = await reading
        assert (refusal.code.name, refusal.reason) == ("UNAVAILABLE", "SERVER_DRAINING")
        assert refusal.retry.retry_delay.seconds > 0
    async with running_edge(tmp_path) as edge:
        await edge.api.CancelJob(pb.CancelJobRequest(name=job.name))
        watch = edge.api.WatchJob(pb.WatchJobRequest(name=job.name, after_sequence=seen[-1]))
        await watch.read()
        seen.append((await watch.read()).event.sequence)
    assert seen == list(range(1, len(seen) + 1))


async def drain_watch(watch, seen: list[int]) -> Refusal:
    try:
        while (response := await watch.read()) is not grpc.aio.EOF:
            seen.append(response.event.sequence)
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError("the stream ended with OK")


async def test_a_drain_lets_calls_end_and_refuses_new_ones(tmp_path):
    async with running_edge(tmp_path) as edge:
        creating = [asyncio.create_task(edge.create()) for _ in range(20)]
        await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        await edge.plane.drain()
        assert asyncio.get_running_loop().time() - began < 5
        results = await asyncio.gather(*creating, return_exceptions=True)
        made = {job.name for job in results if isinstance(job, pb.Job)}
        failures = [error for error in results if isinstance(error, grpc.aio.AioRpcError)]
        assert len(made) + len(failures) == 20
        assert {error.code() for error in failures} <= {grpc.StatusCode.UNAVAILABLE}
    async with running_edge(tmp_path) as edge:
        listed = await edge.api.ListJobs(pb.ListJobsRequest(parent=PARENT))
        assert made <= {job.name for job in listed.jobs}


async def test_watch_jobs_tells_matches_then_changes(edge: Edge):
    first = await edge.create()
    request = pb.WatchJobsRequest(parent=PARENT, filter="state != CANCELLED")
    watch = edge.api.WatchJobs(request)
    response = await watch.read()
    assert response.job.name == first.name
    assert not response.job.HasField("spec")
    while not (response := await watch.read()).HasField("synced"):
        pass
    second = await edge.create()
    while (await watch.read()).job.name != second.name:
        pass
    await edge.api.CancelJob(pb.CancelJobRequest(name=second.name))
    while (response := await watch.read()).removed != second.name:
        assert response.job.name in {first.name, second.name}
    bad = edge.api.WatchJobs(pb.WatchJobsRequest(parent=PARENT, filter="nonsense"))
    assert (await refused(bad)).reason == "INVALID_FILTER"


async def test_watch_jobs_of_another_project_tells_nothing(edge: Edge):
    watch = edge.api.WatchJobs(pb.WatchJobsRequest(parent="projects/other"))
    assert (await watch.read()).HasField("synced")
    await edge.create()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.read(), 0.4)


async def test_a_deleted_job_ends_its_watch(edge: Edge):
    many = edge.api.WatchJobs(pb.WatchJobsRequest(parent=PARENT))
    assert (await many.read()).HasField("synced")
    job = await edge.create()
    await edge.api.CancelJob(pb.CancelJobRequest(name=job.name))
    await collect(edge, job.name)
    while (await many.read()).job.state != pb.JOB_STATE_CANCELLED:
        pass
    await edge.api.DeleteJob(pb.DeleteJobRequest(name=job.name))
    assert (await many.read()).removed == job.name
