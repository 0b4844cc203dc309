"""What must not lose a job: a killed server, a killed worker, storage that goes away."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import lighten
from lighten import v1 as pb
from tests.e2e.conftest import fill_bucket
from tests.support.lighten_server import LightenServer, s3_settings
from tests.support.seaweedfs import SeaweedFS


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An S3 server of these tests' own, because they stop it."""
    with SeaweedFS(tmp_path_factory.mktemp("s3")) as running:
        fill_bucket(running, tmp_path_factory.mktemp("inputs"))
        yield running


@pytest.fixture(scope="module")
def server(storage: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightenServer]:
    data = tmp_path_factory.mktemp("server")
    with LightenServer(data, s3_settings(storage, "s3://e2e/lighten")) as running:
        yield running


def run_with(
    client: lighten.Client, spec: dict[str, object], fault: Callable[[], None]
) -> tuple[pb.Job, list[pb.JobEvent]]:
    """Run a job, cause a fault as soon as it works, and return all events."""
    job = client.submit(spec)
    events, faults = [], []
    for event in client.watch(job.name):
        events.append(event)
        started = event.HasField("stage_started")
        if started and event.stage.kind == pb.Stage.KIND_LOAD and not faults:
            faults.append(threading.Thread(target=fault))
            faults[0].start()
    for thread in faults:
        thread.join()
    assert faults, "the work never began"
    return client.get(job.name), events


def assert_gapless(events: list[pb.JobEvent]) -> None:
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_a_killed_server_loses_neither_job_nor_events(
    server: LightenServer, client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    def kill_and_start() -> None:
        server.kill()
        time.sleep(2.0)
        server.start()

    job, events = run_with(client, onnx_spec, kill_and_start)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert job.attempt == 1, "the worker carried on without its server"
    assert_gapless(events)


def test_a_killed_worker_is_replaced(
    server: LightenServer, client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    def kill_worker() -> None:
        # The busy one and the idle one, which is started anew.
        for process in psutil.Process(server.pid).children():
            process.kill()

    job, events = run_with(client, onnx_spec, kill_worker)

    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert (job.attempt, job.crashes) == (2, 1)
    assert_gapless(events)


def test_storage_that_goes_away_and_comes_back(
    storage: SeaweedFS, client: lighten.Client, onnx_spec: dict[str, object]
) -> None:
    refused: list[str] = []

    def outage() -> None:
        storage.stop()
        try:
            client.submit(onnx_spec)
        except lighten.errors.Unavailable as error:
            refused.append(error.reason)
            time.sleep(10.0)
        finally:
            storage.start()

    job, events = run_with(client, onnx_spec, outage)

    assert refused == ["STORAGE_UNAVAILABLE"]
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert_gapless(events)


def test_a_job_that_needs_too_much_memory_says_so(
    client: lighten.Client, onnx_spec: dict[str, object], tmp_path: Path
) -> None:
    onnx_spec["resources"] = {"memory_bytes": 256 << 20}
    job = client.wait(client.submit(onnx_spec).name)

    assert job.state == pb.JOB_STATE_FAILED
    assert (job.error.reason, job.error.kind) == ("OUT_OF_MEMORY", pb.ERROR_KIND_RESOURCE)
    assert str(256 << 20) in " ".join(job.error.metadata.values())
    assert job.crashes == 0
